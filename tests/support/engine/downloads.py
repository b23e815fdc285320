"""Adapter files to download, and huggingface_hub pointed at a hub of our own."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from multilora.download.transfer import Retries

WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
CONFIG = b'{"peft_type": "LORA"}'


def write_adapter(folder: Path, weights: bytes = WEIGHTS) -> Path:
    """What an adapter repository holds, wanted or not."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_bytes(CONFIG)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "training_args.bin").write_bytes(b"not wanted")
    return folder


def use_hub(patch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """What HF_* would set at import, with short waits."""
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    patch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    patch.delenv("HF_TOKEN", raising=False)
    patch.setattr(Retries, "PAUSES", (0.01, 0.02))


def names_in(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())

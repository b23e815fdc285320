"""Folders of two files that are of one version when they hold the same text."""

import time
from pathlib import Path

from multilora.adapters.files import read_settled

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write(folder: Path, version: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_text(version)


def settle() -> None:
    time.sleep(0.06)


def read(folder: Path) -> dict[str, str]:
    contents = read_settled(folder, (CONFIG, WEIGHTS))
    return {name: content.decode() for name, content in contents.items()}

"""Rewrites the pickled weights of an adapter as safetensors, which servers read.

Laws: nothing in a pickle is run: torch reads tensors out of it and refuses all else. The folder has
the whole new file or none. torch and safetensors are imported here alone, when
they are needed.
"""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from multilora_client.errors import invalid

PICKLE, SAFE = "adapter_model.bin", "adapter_model.safetensors"
_OLDEST_TORCH = (2, 6)  # before it, `weights_only` let some pickles run code


def convert(folder: Path) -> Path:
    """Write SAFE beside PICKLE in `folder` → its path. MultiLoRAError: what is to be done first."""
    source, target = folder / PICKLE, folder / SAFE
    if target.exists():
        raise invalid(f"{target} is there already, which is what servers read; nothing is changed")
    if not source.is_file():
        raise invalid(f"{folder} has no {PICKLE}; name the folder of a PEFT adapter")
    torch, save_file = _libraries()
    tensors = _tensors(torch, source)
    try:
        _write(target, tensors, save_file)
    except Exception as error:  # Of the disk, or of tensors of a kind that the format lacks.
        raise invalid(f"{target} cannot be written ({error}); check the folder") from None
    return target


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        raise invalid(
            f"converting needs {error.name}, which this client does not; pip install torch "
            "safetensors"
        ) from None
    version = torch.__version__
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < _OLDEST_TORCH:
        raise invalid(f"torch {version} may run code of a pickle; pip install 'torch>=2.6'")
    return torch, save_file


def _tensors(torch: Any, source: Path) -> dict[str, Any]:
    """Name → tensor."""
    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        raise invalid(f"{source} cannot be read ({error.strerror}); check the file") from None
    except Exception:  # torch's own messages say how to run what is in there
        raise invalid(
            f"{source} is damaged, or holds more than tensors, which could run code; nothing of it "
            "was run. Save the adapter where it was made, with safe_serialization=True"
        ) from None
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items()
    ):
        raise invalid(f"{source} holds no tensors by name; name the folder of a PEFT adapter")
    return found


def _write(target: Path, tensors: dict[str, Any], save_file: Any) -> None:
    # Each with memory of its own, as the format has it.
    whole = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    descriptor, draft = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        save_file(whole, draft, metadata={"format": "pt"})
        os.fsync(descriptor)
        os.chmod(draft, (target.parent / PICKLE).stat().st_mode & 0o777)
        os.replace(draft, target)
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)

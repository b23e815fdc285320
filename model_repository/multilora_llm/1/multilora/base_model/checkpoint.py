"""CheckpointFiles: the named tensors of a Hugging Face folder, in one safetensors file or shards.

Files are memory-mapped; a tensor is read when it is copied to its place, and never twice.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from multilora.errors import StartupError
from multilora.json_fields import JsonFields

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model*.bin", "pytorch_model*.json", "*.pt", "*.pth")
_OTHERS = ("consolidated*.safetensors", "*.gguf")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class CheckpointFiles:
    """A context manager; raises StartupError naming the file or tensor at fault."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self._where: dict[str, str] = {}

    def __enter__(self) -> Self:
        if (self._folder / _SINGLE).is_file():
            self._where = dict.fromkeys(self._open(_SINGLE).keys(), _SINGLE)
        elif (self._folder / _INDEX).is_file():
            self._where = _weight_map(self._folder / _INDEX)
        else:
            raise _no_weights(self._folder)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def copy(self, name: str, target: torch.Tensor) -> None:
        """target ← tensor `name`, cast to the dtype and moved to the device of `target`."""
        if name not in self._where:
            raise StartupError(
                f"{self._folder}: no weight file has tensor {name}, which config.json calls for; "
                "download the checkpoint again or correct config.json"
            )
        file = self._where[name]
        try:
            source = self._open(file).get_tensor(name)
        except SafetensorError as error:
            raise StartupError(
                f"{self._folder / file}: cannot read {name} ({error}); "
                "download the checkpoint again"
            ) from None
        if source.dtype not in _DTYPES:
            raise StartupError(
                f"{self._folder / file}: tensor {name} is {source.dtype}; quantised checkpoints "
                "are not supported, use the bfloat16, float16 or float32 one"
            )
        if source.shape != target.shape:
            raise StartupError(
                f"{self._folder / file}: tensor {name} has shape {list(source.shape)} but "
                f"config.json makes it {list(target.shape)}; they are not of the same model"
            )
        target.copy_(source)

    def _open(self, file: str) -> Any:
        if file not in self._files:
            path = self._folder / file
            if not path.is_file():
                raise StartupError(
                    f"{path} is missing but {_INDEX} lists it; download the checkpoint again"
                )
            try:
                handle = self._stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise StartupError(
                    f"{path}: not a readable safetensors file ({error}); "
                    "download the checkpoint again"
                ) from None
            self._files[file] = handle
        return self._files[file]


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = JsonFields.read(index).fields("weight_map")
    for name, file in weight_map.data.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise weight_map.error(name, f"must be a file name; got {file!r}")
    return weight_map.data


def _no_weights(folder: Path) -> StartupError:
    pickles = [file.name for pattern in _PICKLES for file in folder.glob(pattern)]
    if pickles:
        return StartupError(
            f"{folder} has only pickled weights ({min(pickles)}), which can run code when loaded; "
            "convert them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    others = [file.name for pattern in _OTHERS for file in folder.glob(pattern)]
    found = f"has its weights as {min(others)}" if others else f"has neither {_SINGLE} nor {_INDEX}"
    return StartupError(
        f"{folder} {found}; serve a checkpoint as transformers saves it, in safetensors"
    )

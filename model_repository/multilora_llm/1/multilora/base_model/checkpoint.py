"""CheckpointFiles: the named tensors of a Hugging Face folder, in one safetensors file or shards.

Files are memory-mapped; a tensor is read when it is copied to its place, and never twice.
"""

import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from multilora.base_model.config import INDEX, SINGLE, weight_map
from multilora.errors import StartupError

_LOG = logging.getLogger(__name__)
_TOLD_SECONDS = 2.0
ItemT = TypeVar("ItemT")
_PICKLES = ("pytorch_model*.bin", "pytorch_model*.json", "*.pt", "*.pth")
_OTHERS = ("consolidated*.safetensors", "*.gguf")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_COMPARED = 1 << 21  # numbers at once
_MOST_NAMED = 4  # kinds of tensors in a warning
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# How a model for images or sounds, too, names what its text decoder has as a class of its own.
TEXT_PART = {
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^model\.language_model\.": "model.",
}
# What can be worked out from the rest: frequencies of RoPE, and the shapes of packed weights. And
# what only others need: scales of rows, K and V in eight bits; ours have their own, or are not.
_NOT_NEEDED = (
    ".inv_freq", ".weight_shape", ".input_scale", ".input_zero_point", ".k_scale", ".v_scale",
)  # fmt: skip


class CheckpointFiles:
    """A context manager; raises StartupError naming the file or tensor at fault. The text part of
    a larger model has the names that it would have alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        self._stored: dict[str, str] = {}  # names that are others in the files
        self._read: set[str] = set()

    def __enter__(self) -> Self:
        if (self._folder / SINGLE).is_file():
            self._where = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        elif (self._folder / INDEX).is_file():
            self._where = weight_map(self._folder)
        else:
            raise _no_weights(self._folder)
        self._stored = {text_name(name): name for name in self._where if text_name(name) != name}
        for name, stored in self._stored.items():
            self._where[name] = self._where.pop(stored)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    @property
    def names(self) -> Iterable[str]:
        return self._where.keys()

    def find(self, name: str) -> str | None:
        """The tensor that is meant by `name`, which may lack "model." in front; a head that is tied
        and not in the files is the embedding."""
        found = next((whole for whole in (f"model.{name}", name) if whole in self), None)
        ties = name == _HEAD and not found and _EMBEDDING in self
        return _EMBEDDING if ties else found

    def shape(self, name: str) -> list[int]:
        return self._slice(name).get_shape()

    def differing_rows(self, name: str, other: torch.Tensor) -> int:
        """How many rows of `other` (values, if it has one dimension) are not those of tensor
        `name`; one that either lacks counts too.

        Two values are the same when they are in the dtype of one of the two: checkpoints and what
        is trained on them are often kept in different ones. Compared a few megabytes at a time; a
        meta tensor has no values, and counts as the same where both have rows.
        """
        ours, shape = self._slice(name), self.shape(name)
        if other.ndim != len(shape) or list(other.shape[1:]) != shape[1:]:
            return max(shape[0], len(other) if other.ndim else 1)
        shared = min(shape[0], len(other))
        step = max(1, _COMPARED // max(1, math.prod(shape[1:])))
        rows = max(shape[0], len(other)) - shared
        if other.is_meta:
            return rows
        for start in range(0, shared, step):
            end = min(start + step, shared)
            a, b = ours[start:end], other[start:end]
            same = (a == b.to(a.dtype)) | (a.to(b.dtype) == b)
            rows += int((~same.reshape(len(a), -1).all(1)).sum())
        return rows

    def read(self, name: str, shape: Sequence[int] | None = None) -> torch.Tensor:
        """Tensor `name` as its file has it, which stays mapped; of that shape, if given."""
        if name not in self._where:
            raise StartupError(
                f"{self._folder}: no weight file has tensor {name}, which config.json calls for; "
                "download the checkpoint again or correct config.json"
            )
        self._read.add(name)
        file = self._where[name]
        try:
            tensor = self._open(file).get_tensor(self._stored.get(name, name))
        except SafetensorError as error:
            raise self._unreadable(name, file, error) from None
        if shape is not None and list(tensor.shape) != list(shape):
            raise self.wrong_shape(name, shape)
        return tensor

    def copy(self, name: str, target: torch.Tensor) -> None:
        """target ← tensor `name`, cast to the dtype and moved to the device of `target`."""
        source = self.read(name, target.shape)
        if source.dtype not in _DTYPES:
            raise self.wrong_dtype(name, source.dtype)
        target.copy_(source)

    def report_unused(self) -> None:
        """A warning, if there are tensors that nobody has read."""
        report_unused(self._folder, self._where.keys() - self._read)

    def wrong_shape(self, name: str, expected: Sequence[int]) -> StartupError:
        return StartupError(
            f"{self._folder / self._where[name]}: tensor {name} has shape {self.shape(name)} but "
            f"config.json makes it {list(expected)}; they are not of the same model"
        )

    def check_floats(self, names: Iterable[str]) -> None:
        """StartupError for a matrix of whole numbers or FP8, which by themselves mean nothing.
        Names that the files do not have are left out."""
        for name in names:
            if name in self and name.endswith(".weight"):
                try:
                    dtype = self._slice(name).get_dtype()
                except SafetensorError as error:
                    raise self._unreadable(name, self._where[name], error) from None
                if dtype not in ("F64", "F32", "BF16", "F16"):
                    raise self.wrong_dtype(name, dtype)

    def wrong_dtype(self, name: str, dtype: torch.dtype | str) -> StartupError:
        return StartupError(
            f"{self._folder / self._where[name]}: tensor {name} is {dtype}, and config.json has no "
            "quantization_config that says how to read it; download config.json again, or use the "
            "bfloat16, float16 or float32 checkpoint"
        )

    def _unreadable(self, name: str, file: str, error: Exception) -> StartupError:
        return StartupError(
            f"{self._folder / file}: cannot read {name} ({error}); download the checkpoint again"
        )

    def _slice(self, name: str) -> Any:
        return self._open(self._where[name]).get_slice(self._stored.get(name, name))

    def _open(self, file: str) -> Any:
        if file not in self._files:
            path = self._folder / file
            if not path.is_file():
                raise StartupError(
                    f"{path} is missing but {INDEX} lists it; download the checkpoint again"
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


def watched(
    items: Collection[ItemT], what: str, clock: Callable[[], float] = time.monotonic
) -> Iterator[ItemT]:
    """The items, while the log tells those who wait for a large model how many of them are done."""
    told = clock()
    for number, item in enumerate(items):
        if clock() >= told + _TOLD_SECONDS:
            told = clock()
            _LOG.info("%s: %d %%", what, 100 * number // len(items))
        yield item


def text_name(name: str) -> str:
    """Of a tensor of the text part, as its class has it."""
    for pattern, replacement in TEXT_PART.items():
        name = re.sub(pattern, replacement, name)
    return name


def report_unused(folder: Path, names: Iterable[str]) -> None:
    """A warning about those tensors of a checkpoint, those of all layers as one; none if there are
    no more than those that are not needed."""
    names = sorted(name for name in names if not name.endswith(_NOT_NEEDED))
    kinds = Counter(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names)
    if kinds:
        found = ", ".join(kind for kind, _ in kinds.most_common(_MOST_NAMED))
        more = f" and {len(kinds) - _MOST_NAMED} other names" if len(kinds) > _MOST_NAMED else ""
        _LOG.warning("%s: %d tensors are not used: %s%s", folder, len(names), found, more)


def _no_weights(folder: Path) -> StartupError:
    pickles = [file.name for pattern in _PICKLES for file in folder.glob(pattern)]
    if pickles:
        return StartupError(
            f"{folder} has only pickled weights ({min(pickles)}), which can run code when loaded; "
            "convert them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    others = [file.name for pattern in _OTHERS for file in folder.glob(pattern)]
    found = f"has its weights as {min(others)}" if others else f"has neither {SINGLE} nor {INDEX}"
    return StartupError(
        f"{folder} {found}; serve a checkpoint as transformers saves it, in safetensors"
    )

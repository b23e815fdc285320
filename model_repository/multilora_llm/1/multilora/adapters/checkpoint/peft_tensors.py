"""From the files of a PEFT checkpoint to checked LoRA factors of the base model's modules.

Law: every tensor is used, or equals the base model's own, or the adapter is refused, so nothing an
adapter learned is dropped.
"""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multilora.adapters.checkpoint.factors import FLOATS, Factors, Half, not_gathered, paired, twice
from multilora.adapters.checkpoint.known_modules import (
    KnownModules,
    no_room,
    plain_path,
)
from multilora.adapters.checkpoint.peft_config import AdapterConfig
from multilora.adapters.checkpoint.single_experts import SingleExperts, no_room_for
from multilora.adapters.files import CONFIG_FILE, weight_files
from multilora.base_model.checkpoint import CheckpointFiles
from multilora.base_model.sites import LoRASite
from multilora.errors import ErrorCode, RequestError, StartupError, invalid, lfs_problem
from multilora.lora.rank_pages import largest

_TENSOR = re.compile(
    r"(?P<module>.+)\.lora_(?:(?P<half>[AB])(?:\.[^.]+)?\.weight|embedding_(?P<table>[AB])(?:\.[^.]+)?)"
)
_WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What PEFT puts between a module and a copy of its weight.
_COPY = re.compile(r"\.(?:base_layer|original_module|modules_to_save(?:\.[^.]+)?)(?=\.)")
_FOREIGN = (  # part of a tensor name → what it is
    ("lora_magnitude_vector", "a DoRA magnitude"),
    ("token_adapter", "trained token embeddings"),
    ("trainable_tokens_", "trained token embeddings"),
    ("embed_tokens.", "an embedding table (added or trained vocabulary)"),
    ("lm_head.", "the output head (added or trained vocabulary)"),
    ("modules_to_save", "a fully trained copy of a base module"),
    (".bias", "a trained bias"),
)
_TABLE_TENSORS = {  # part of a tensor name → the module that it is LoRA on
    "embed_tokens.lora_embedding_": "embed_tokens",
    "unembed_tokens.lora_": "lm_head",
    "lm_head.lora_": "lm_head",
}
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
POINTER_BYTES = 64  # tell a Git LFS pointer


def parse(name: str, content: bytes | memoryview) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, which share its memory where that is aligned."""
    if problem := lfs_problem(bytes(content[:POINTER_BYTES])):
        raise invalid(f"{name} {problem}")
    try:
        head = head_of(content)
        entries = json.loads(bytes(head[8:]))
        entries.pop("__metadata__", None)
        numbers = as_tensor(content)[len(head) :]
        end = 0
        for entry in sorted(entries.values(), key=lambda entry: entry["data_offsets"]):
            start, stop = entry["data_offsets"]
            if start != end or stop - start != math.prod(entry["shape"]) * _itemsize(entry):
                raise ValueError("its tensors leave gaps, overlap or have other sizes")
            end = stop
        if end != len(numbers):
            raise ValueError(f"{end} bytes are announced, {len(numbers)} there")
        return {key: _view(numbers, entry) for key, entry in entries.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise _corrupt(name, error) from None


def shapes_of(parts: Mapping[str, bytes]) -> dict[str, torch.Tensor]:
    """The tensors of safetensors files, of which there are the heads, without their values."""
    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(parts):
        try:
            entries = json.loads(parts[file])
            entries.pop("__metadata__", None)
            more = {
                name: torch.empty(entry["shape"], dtype=_DTYPES.get(entry["dtype"]), device="meta")
                for name, entry in entries.items()
            }
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise _corrupt(file, error) from None
        add_shard(tensors, more, file)
    return tensors


def add_shard(tensors: dict[str, torch.Tensor], more: dict[str, torch.Tensor], file: str) -> None:
    if twice := tensors.keys() & more.keys():
        raise invalid(f"{file} holds {min(twice)!r}, as another shard does; save the adapter again")
    tensors.update(more)


def as_tensor(content: bytes | memoryview) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8))


def head_of(content: bytes | memoryview) -> bytes | memoryview:
    """What stands before the numbers."""
    return content[: 8 + int.from_bytes(content[:8], "little")]


def _view(numbers: torch.Tensor, entry: Mapping[str, Any]) -> torch.Tensor:
    start, end = entry["data_offsets"]
    own = numbers[start:end]
    if own.data_ptr() % _itemsize(entry) or own.storage_offset() % _itemsize(entry):
        own = own.clone()
    return own.view(_DTYPES[entry["dtype"]]).view(entry["shape"])


def _itemsize(entry: Mapping[str, Any]) -> int:
    return _DTYPES[entry["dtype"]].itemsize


def _corrupt(name: str, error: Exception) -> RequestError:
    return invalid(f"{name} is corrupt or cut short ({error}); copy or download it again")


def without_copies(
    tensors: Mapping[str, torch.Tensor], base_folder: Path
) -> dict[str, torch.Tensor]:
    """The tensors but for those that equal the ones of the base model, which change nothing.

    Trainers copy whole embeddings and heads, and sharded ones each weight, beside the factors.
    RequestError(INVALID_ARG) for a copy that differs, UNAVAILABLE when the base's files have gone.
    """
    plain = {name: _WRAPPERS.sub("", name) for name in tensors}
    others = [
        name
        for name, tensor in tensors.items()
        if not _TENSOR.fullmatch(plain[name]) and tensor.dtype in FLOATS and tensor.numel()
    ]
    if not others:
        return dict(tensors)
    try:
        with CheckpointFiles(base_folder) as files:
            copies = {name: files.find(plain_path(_COPY.sub("", plain[name]))) for name in others}
            for name, original in copies.items():
                if original and (rows := files.differing_rows(original, tensors[name])):
                    raise _changed(name, tensors[name], rows, original, files.shape(original))
    except StartupError as error:
        message = f"its copies of the base model's weights cannot be compared with these: {error}"
        raise RequestError(ErrorCode.UNAVAILABLE, message) from None
    return {name: tensor for name, tensor in tensors.items() if not copies.get(name)}


def _changed(
    name: str, tensor: torch.Tensor, rows: int, original: str, shape: list[int]
) -> RequestError:
    what = f"tensor {name!r} {list(tensor.shape)} differs in {rows} rows from {original} {shape}"
    if re.search(r"\.(base_layer|original_module)\.", name):
        return invalid(
            f"{what}, which it was copied from in training; serve the base model that the adapter "
            "was trained on"
        )
    return invalid(
        f"{what} of the base model; trained or added rows are not supported: retrain without "
        "modules_to_save and new tokens, or merge the adapter into the base model and serve that "
        "(if nothing was meant to be trained there, remove the tensor from the file)"
    )


def lora_factors(
    tensors: Mapping[str, torch.Tensor],
    config: AdapterConfig,
    sites: Sequence[LoRASite],
    max_rank: int,
    optional: Collection[str] = (),
) -> dict[str, Factors]:
    """The factors of every module the adapter updates, by its path in the base; at least one.
    `optional` are short names of places that `sites` may lack, see BaseConfig.optional.

    RequestError(INVALID_ARG) for tensors that are unknown, unpaired, of the wrong shape, over
    `max_rank`, and when none fits the base model.
    """
    _check_not_empty(tensors)
    known = KnownModules(sites, config.target_parameters, optional)
    experts = SingleExperts(known)
    halves: dict[tuple[str, str], Half] = {}
    foreign: list[str] = []
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(_WRAPPERS.sub("", name))
        if match and match["half"] and experts.take(name, match["module"], match["half"], tensor):
            continue
        place = known.find(match["module"], name) if match else None
        takes_ids = match is not None and match["table"] is not None
        if match is None or place is None or known.sites[place.module][0].takes_ids != takes_ids:
            foreign.append(name)
            continue
        half = Half(name, place.pattern_name, tensor)
        other = halves.setdefault((place.module, match["half"] or match["table"]), half)
        if other is not half:
            raise twice(other, half)
    some_match = bool(halves or experts.names)
    if foreign or not some_match:
        raise _refusal(foreign, some_match, known)
    touched = dict.fromkeys(module for module, _ in halves)
    configs = config.of_modules([*(half.module for half in halves.values()), *experts.names])
    found = {
        module: paired(known.sites[module], halves, configs, max_rank, config) for module in touched
    }
    for parameter, factors in experts.factors(configs, max_rank, config).items():
        if parameter in found:
            raise invalid(f"tensors for {parameter} and for single experts; save the adapter again")
        found[parameter] = factors
    return found | _tied(found, config, known) if config.ties else found


def _tied(
    factors: Mapping[str, Factors], config: AdapterConfig, known: KnownModules
) -> dict[str, Factors]:
    """The transposed update of a table for the one that has the same weight, unless the file holds
    that, too, as PEFT's files do."""
    found: dict[str, Factors] = {}
    for module, (a, b, _) in factors.items():
        twin = known.sites[module][0].twin
        if not twin or twin in factors:
            continue
        if twin not in known.sites:
            table = twin.rpartition(".")[2]
            raise no_room(f"ensure_weight_tying in {CONFIG_FILE} makes this", table)
        scaling = config.of_modules([twin])[twin].scaling
        found[twin] = Factors(b.T.contiguous(), a.T.contiguous(), scaling)
    return found


def _check_not_empty(tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.numel():
            raise not_gathered(name, tensor)


def _refusal(foreign: list[str], some_match: bool, known: KnownModules) -> RequestError:
    for part, table in _TABLE_TENSORS.items():
        for name in foreign:
            if part in name and table not in known.names:
                return no_room(f"tensor {name!r} is", table)
    for name in foreign:
        if refusal := _parameter_refusal(name, known):
            return refusal
    matches = {name: _TENSOR.fullmatch(_WRAPPERS.sub("", name)) for name in foreign}
    halves = {name: match["module"] for name, match in matches.items() if match and match["half"]}
    if refusal := no_room_for(halves, known):
        return refusal
    for part, meaning in _FOREIGN:
        for name in foreign:
            if part in name and f"{part}lora_" not in name:
                return invalid(
                    f"tensor {name!r} is {meaning}, which is not supported; retrain without it, "
                    "or merge the adapter into the base model and serve that"
                )
    if not foreign:
        return invalid("the checkpoint holds no tensors; save the trained adapter again")
    names = ", ".join(known.names)
    if some_match:
        return invalid(
            f"tensor {foreign[0]!r} is not lora_A or lora_B of {names}; "
            "retrain with target_modules among these"
        )
    return invalid(
        f"no tensor matches a module of the base model, which has {names} in layers 0 to "
        f"{known.num_layers - 1} (the first tensor is {foreign[0]!r}); "
        "use an adapter that was trained on this base model"
    )


def _parameter_refusal(name: str, known: KnownModules) -> RequestError | None:
    """Why a tensor for target_parameters has no place, if it is that."""
    match = _TENSOR.fullmatch(_WRAPPERS.sub("", name))
    lacking = [
        short
        for short in (known.targets_in(match["module"]) if match else ())
        if short not in known.names
    ]
    if not lacking:
        return None
    if all(short in known.optional for short in lacking):
        return no_room(f"tensor {name!r} is", *lacking)
    others = ", ".join(name for name in known.optional if "." in name) or "none"
    return invalid(
        f"tensor {name!r} is LoRA on the parameter {lacking[0]}, on which adapters cannot act in "
        f"this base model (parameters on which they can: {others}); retrain without it in "
        "target_parameters, or use the base model the adapter was trained on"
    )


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """RequestError(INVALID_ARG) naming the first tensor that holds an infinity or a NaN."""
    for name, tensor in tensors.items():
        if not math.isfinite(largest(tensor)):
            raise invalid(
                f"tensor {name!r} holds values that are not finite; the training diverged, "
                "so use an earlier checkpoint"
            )

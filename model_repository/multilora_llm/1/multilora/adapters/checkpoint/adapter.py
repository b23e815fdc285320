"""A PEFT LoRA checkpoint, read, checked and packed into rank pages (see page_layout).

Law: an Adapter fits the base model, is finite in the pool's dtype and carries its scaling in b;
whatever cannot be served exactly is refused, never approximated.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors

from multilora.adapters.checkpoint.peft_config import parse_config
from multilora.adapters.checkpoint.peft_tensors import (
    Factors,
    Target,
    check_finite,
    is_finite,
    lora_factors,
)
from multilora.adapters.files import (
    CONFIG_FILE,
    NEEDED_FILES,
    PICKLE_FILE,
    PICKLE_REFUSAL,
    WEIGHTS_FILE,
    read_settled,
)
from multilora.base_model.config import PROJECTION_GROUPS, BaseConfig
from multilora.errors import RequestError, invalid
from multilora.lora.rank_pages import PageTensors, bytes_per_page
from multilora_kernels.segments import PAGE_RANK


@dataclass(frozen=True)
class AdapterFacts:
    """What is known of a version without its weights, as `Adapter` has it."""

    digest: str
    rank: int
    num_pages: int
    nbytes: int
    modules: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Adapter:
    """One version of one adapter in host memory, ready to be copied into any pool pages.

    `rank` is the largest of its modules, `num_pages` = ceil(rank / PAGE_RANK), `nbytes` what it
    takes in the pool, `modules` the projections it updates ("q_proj", …) in model order.
    """

    adapter_id: str
    digest: str  # SHA-256 of both files, hex
    rank: int
    num_pages: int
    nbytes: int
    modules: tuple[str, ...]
    weights: PageTensors
    chat_template: Any = None  # set by the text layer; None: the base model's

    @property
    def facts(self) -> AdapterFacts:
        return AdapterFacts(self.digest, self.rank, self.num_pages, self.nbytes, self.modules)

    @property
    def key(self) -> str:
        """Content identity: two versions of one adapter are two keys."""
        return f"{self.adapter_id}@{self.digest[:16]}"


class Checkpoint(NamedTuple):
    """What the files of an adapter say; `digest` is that of the Adapter."""

    digest: str
    factors: dict[Target, Factors]


def read_checkpoint(folder: Path, adapter_id: str, base: BaseConfig, max_rank: int) -> Checkpoint:
    """The checked and finite factors of the adapter in `folder`; errors as `read_adapter`."""
    try:
        config, weights = _read_files(folder)
        tensors = _parse(weights)
        factors = lora_factors(tensors, parse_config(config), base, max_rank)
        check_finite(tensors)
        return Checkpoint(_digest(config, weights), factors)
    except RequestError as error:
        raise RequestError(error.code, f"adapter {adapter_id!r}: {error.message}") from None


def read_adapter(
    folder: Path, adapter_id: str, base: BaseConfig, dtype: torch.dtype, max_rank: int
) -> Adapter:
    """Read the PEFT (0.5 to 0.21) adapter in `folder` for `base` → Adapter with pages of `dtype`.

    RequestError(INVALID_ARG) with reason and remedy when it cannot be served exactly.
    """
    try:
        if not folder.is_dir():
            raise invalid(f"folder {folder} does not exist; check the adapter's path")
        config, weights = _read_files(folder)
        with ThreadPoolExecutor(max_workers=1) as beside:  # a third of the work, without the GIL
            digest = beside.submit(_digest, config, weights)
            tensors = _parse(weights)
            factors = lora_factors(tensors, parse_config(config), base, max_rank)
            rank = max(pair.rank for pair in factors.values())
            num_pages = -(-rank // PAGE_RANK)
            pages = _pack(factors, base, num_pages, dtype)
            if not is_finite(pages.data):
                check_finite(tensors)
                raise invalid(
                    f"{WEIGHTS_FILE} holds values beyond the range of {dtype} once scaled; "
                    "serve with --dtype bfloat16"
                )
        touched = {target.projection for target in factors}
        return Adapter(
            adapter_id=adapter_id,
            digest=digest.result(),
            rank=rank,
            num_pages=num_pages,
            nbytes=num_pages * bytes_per_page(base, dtype),
            modules=tuple(name for name in base.projections if name in touched),
            weights=pages,
        )
    except RequestError as error:
        raise RequestError(error.code, f"adapter {adapter_id!r}: {error.message}") from None


def _read_files(folder: Path) -> tuple[bytes, bytes]:
    """Config and weights, of the same moment."""
    contents = read_settled(folder, NEEDED_FILES)
    for name in NEEDED_FILES:
        if name not in contents:
            raise _missing(folder, name)
    return contents[CONFIG_FILE], contents[WEIGHTS_FILE]


def _digest(*contents: bytes) -> str:
    """SHA-256 of the digests, so that moving a byte from one file to the next changes it."""
    parts = b"".join(hashlib.sha256(content).digest() for content in contents)
    return hashlib.sha256(parts).hexdigest()


def _missing(folder: Path, name: str) -> RequestError:
    if name == WEIGHTS_FILE and (folder / PICKLE_FILE).is_file():
        return invalid(PICKLE_REFUSAL)
    return invalid(f"{name} is missing in {folder}; save the adapter with save_pretrained")


def _parse(content: bytes) -> dict[str, torch.Tensor]:
    try:
        return parse_safetensors(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise invalid(
            f"{WEIGHTS_FILE} is corrupt or cut short ({error}); copy or download it again"
        ) from None


def _pack(
    factors: Mapping[Target, Factors], base: BaseConfig, num_pages: int, dtype: torch.dtype
) -> PageTensors:
    """Rank row i of every module goes to row i % PAGE_RANK of page i // PAGE_RANK."""
    pages = PageTensors.zeros(base, num_pages, dtype, "cpu")
    for group, projections in PROJECTION_GROUPS.items():
        sizes = base.slice_sizes(group)
        for layer, (a, b) in enumerate(zip(pages.a, pages.b, strict=True)):
            columns = b[group].split(sizes, dim=-1)
            for slot, projection in enumerate(projections):
                pair = factors.get(Target(layer, projection))
                if pair is not None:
                    _fill(a[group][:, slot], pair.a)
                    _fill(columns[slot], pair.b.T.float() * pair.scaling)
    return pages


def _fill(pages: torch.Tensor, rows: torch.Tensor) -> None:
    """Copy `rows` [rank, n] into `pages` [pages, PAGE_RANK, n], a page at a time."""
    for page, chunk in zip(pages, rows.split(PAGE_RANK), strict=False):
        page[: len(chunk)] = chunk

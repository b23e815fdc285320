"""A PEFT LoRA checkpoint, read, checked and packed into rank pages (see rank_pages).

Law: an Adapter fits the base model, is finite in the pool's dtype and carries its scaling in b;
whatever cannot be served exactly is refused, never approximated.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors

from multilora.adapters.checkpoint.peft_config import parse_config
from multilora.adapters.checkpoint.peft_tensors import (
    Factors,
    check_finite,
    is_finite,
    lora_factors,
)
from multilora.adapters.checkpoint.text import NO_TEXT, TEXT_LIMITS, AdapterText, adapter_text
from multilora.adapters.files import (
    CONFIG_FILE,
    FILES,
    NEEDED_FILES,
    PICKLE_FILE,
    PICKLE_REFUSAL,
    WEIGHTS_FILE,
    read_settled,
)
from multilora.base_model.sites import LoRASite, short_names
from multilora.errors import RequestError, invalid
from multilora.lora.rank_pages import PageTensors, bytes_per_page
from multilora_kernels.segments import PAGE_RANK
from multilora_text.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterFacts:
    """The fields of an Adapter that are kept without its weights; see Adapter."""

    digest: str
    rank: int
    num_pages: int
    nbytes: int
    modules: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Adapter:
    """One version of one adapter in host memory, ready to be copied into any pool pages.

    `rank` is the largest of its modules, `num_pages` = ceil(rank / PAGE_RANK), `nbytes` what it
    takes in the pool, `modules` the modules it updates ("q_proj", …) in model order.
    """

    adapter_id: str
    digest: str  # SHA-256 of config and weights, hex
    rank: int
    num_pages: int
    nbytes: int
    modules: tuple[str, ...]
    weights: PageTensors
    text: AdapterText = NO_TEXT

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
    factors: dict[str, Factors]  # by module path
    end_token_ids: tuple[int, ...]  # sorted

    @property
    def identity(self) -> str:
        """Equal for two checkpoints of which a merge would be the same."""
        return ":".join((self.digest, *map(str, self.end_token_ids)))


def read_checkpoint(
    folder: Path, sites: Sequence[LoRASite], max_rank: int, tokenizer: Tokenizer | None = None
) -> Checkpoint:
    """The checked and finite factors of the adapter in `folder`; text and errors as in
    `read_adapter`."""
    files = _snapshot(folder, FILES if tokenizer else NEEDED_FILES)
    tensors = _parse(files[WEIGHTS_FILE])
    factors = lora_factors(tensors, parse_config(files[CONFIG_FILE]), sites, max_rank)
    check_finite(tensors)
    text = adapter_text(files, tokenizer) if tokenizer else NO_TEXT
    return Checkpoint(_digest(files), factors, tuple(sorted(text.end_token_ids)))


def read_adapter(
    folder: Path,
    adapter_id: str,
    sites: Sequence[LoRASite],
    dtype: torch.dtype,
    max_rank: int,
    tokenizer: Tokenizer | None = None,
) -> Adapter:
    """Read the PEFT (0.5 to 0.21) adapter in `folder` → Adapter with pages of `dtype`.

    Weights and text are of one moment. Without the base model's `tokenizer` the text is not read.
    RequestError(INVALID_ARG) with reason and remedy when the adapter cannot be served exactly; the
    caller adds which adapter that is (see about_adapter).
    """
    if not folder.is_dir():
        raise invalid(f"folder {folder} does not exist; check the adapter's path")
    files = _snapshot(folder, FILES if tokenizer else NEEDED_FILES)
    with ThreadPoolExecutor(max_workers=1) as beside:  # a third of the work, without the GIL
        digest = beside.submit(_digest, files)
        tensors = _parse(files[WEIGHTS_FILE])
        factors = lora_factors(tensors, parse_config(files[CONFIG_FILE]), sites, max_rank)
        rank = max(pair.rank for pair in factors.values())
        num_pages = -(-rank // PAGE_RANK)
        pages = _pack(factors, sites, num_pages, dtype)
        if not is_finite(pages.data):
            check_finite(tensors)
            raise invalid(
                f"{WEIGHTS_FILE} holds values beyond the range of {dtype} once scaled; "
                "serve with --dtype bfloat16"
            )
    touched = {module.rpartition(".")[2] for module in factors}
    text = adapter_text(files, tokenizer) if tokenizer else NO_TEXT
    if text.warning:
        _LOG.warning("adapter %r: %s", adapter_id, text.warning)
    return Adapter(
        adapter_id=adapter_id,
        digest=digest.result(),
        rank=rank,
        num_pages=num_pages,
        nbytes=num_pages * bytes_per_page(sites, dtype),
        modules=tuple(name for name in short_names(sites) if name in touched),
        weights=pages,
        text=text,
    )


def _snapshot(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The files of one moment; RequestError when a needed one is missing."""
    contents = read_settled(folder, names, TEXT_LIMITS)
    for name in NEEDED_FILES:
        if name not in contents:
            raise _missing(folder, name)
    return contents


def _digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 of the digests of the needed files, so that a byte moved between them changes it."""
    parts = b"".join(hashlib.sha256(files[name]).digest() for name in NEEDED_FILES)
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
    factors: Mapping[str, Factors], sites: Sequence[LoRASite], num_pages: int, dtype: torch.dtype
) -> PageTensors:
    """Rank row i of every module goes to row i % PAGE_RANK of page i // PAGE_RANK."""
    pages = PageTensors.zeros(sites, num_pages, dtype, "cpu")
    for site in sites:
        a, columns = pages.a[site.name], pages.b[site.name].split(site.slice_sizes, dim=-1)
        for slot, part in enumerate(site.slices):
            pair = factors.get(part.module)
            if pair is not None:
                _fill(a[:, slot], pair.a)
                _fill(columns[slot], pair.b.T.float() * pair.scaling)
    return pages


def _fill(pages: torch.Tensor, rows: torch.Tensor) -> None:
    """Copy `rows` [rank, n] into `pages` [pages, PAGE_RANK, n], a page at a time."""
    for page, chunk in zip(pages, rows.split(PAGE_RANK), strict=False):
        page[: len(chunk)] = chunk

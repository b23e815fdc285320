"""A PEFT LoRA checkpoint, read, checked, and planned into rank pages (see rank_pages).

Law: an Adapter fits the base model and is finite in the pool's dtype once scaled; whatever cannot
be served exactly is refused, never approximated. What adapters of one training share is worked out
once: the interpreter, which they share with the engine, is busy with a load for a moment only.
"""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from multilora.adapters.checkpoint.factors import Factors
from multilora.adapters.checkpoint.peft_config import parse_config
from multilora.adapters.checkpoint.peft_tensors import (
    add_shard,
    as_tensor,
    check_finite,
    head_of,
    lora_factors,
    parse,
    without_copies,
)
from multilora.adapters.checkpoint.text import NO_TEXT, TEXT_LIMITS, AdapterText, adapter_text
from multilora.adapters.files import (
    CONFIG_FILE,
    OPTIONAL_FILES,
    FileBytes,
    FileStamp,
    check_present,
    in_parallel,
    needed_files,
    read_settled,
    weight_files,
)
from multilora.base_model.sites import LoRASite, modules, short_names
from multilora.errors import ErrorCode, invalid
from multilora.lora.rank_pages import (
    HostWeights,
    PackPlan,
    bytes_per_page,
    is_tidy,
    largest,
    tidied,
)
from multilora_text.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)
_Files = Mapping[str, FileBytes]
_SHOWN = 4  # names in a line of the log
_MOST_PLANS = 64


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
    """One version of one adapter in host memory, ready to be packed into any pool pages.

    `rank` is the largest of its modules, `num_pages` = ceil(rank / PAGE_RANK), `nbytes` what it
    takes in the pool, `modules` the modules it updates ("q_proj", …) in model order.
    """

    adapter_id: str
    digest: str  # SHA-256 of config and weights, hex
    rank: int
    num_pages: int
    nbytes: int
    modules: tuple[str, ...]
    weights: HostWeights
    text: AdapterText = NO_TEXT

    @property
    def host_bytes(self) -> int:
        """What it takes in host memory."""
        return self.weights.data.nbytes

    @property
    def facts(self) -> AdapterFacts:
        return AdapterFacts(self.digest, self.rank, self.num_pages, self.nbytes, self.modules)

    @property
    def key(self) -> str:
        """Content identity: two versions of one adapter are two keys."""
        return f"{self.adapter_id}@{self.digest[:16]}"


class Checkpoint(NamedTuple):
    """What the files of an adapter say; `digest` is that of the Adapter, `stamps` are theirs."""

    digest: str
    factors: dict[str, Factors]  # by module path
    end_token_ids: tuple[int, ...]  # sorted
    stamps: tuple[FileStamp, ...]

    @property
    def identity(self) -> str:
        """Equal for two checkpoints of which a merge would be the same."""
        return ":".join((self.digest, *map(str, self.end_token_ids)))


def read_checkpoint(
    folder: Path,
    sites: Sequence[LoRASite],
    max_rank: int,
    tokenizer: Tokenizer | None = None,
    base_folder: Path | None = None,
    optional: Collection[str] = (),
) -> Checkpoint:
    """The checked and finite factors of the adapter in `folder`; text and errors as AdapterReader
    reads them."""
    files = _snapshot(folder, OPTIONAL_FILES if tokenizer else ())
    contents = _contents(files, sites, max_rank, base_folder, optional)
    check_finite(contents.changes)
    text = adapter_text(files, tokenizer) if tokenizer else NO_TEXT
    end_token_ids = tuple(sorted(text.end_token_ids))
    read = tuple(file.stamp for file in files.values())
    return Checkpoint(_digest(files), contents.factors, end_token_ids, read)


class _Form(NamedTuple):
    """What adapters of one training share: all but their numbers."""

    plan: PackPlan
    rank: int
    modules: tuple[str, ...]
    unchanged: list[str]  # see _Contents
    tidy: bool  # the plan is for the bytes of the file as they are; see is_tidy


class AdapterReader:
    """Reads PEFT (0.5 to 0.21) adapters for a pool of `dtype`. Any thread.

    Without the base model's `tokenizer` their text is not read, and without its folder copies of
    its weights are refused. `optional`: see lora_factors.
    """

    def __init__(
        self,
        sites: Sequence[LoRASite],
        dtype: torch.dtype,
        max_rank: int,
        tokenizer: Tokenizer | None = None,
        base_folder: Path | None = None,
        optional: Collection[str] = (),
    ) -> None:
        self._sites = sites
        self._dtype = dtype
        self._max_rank = max_rank
        self._tokenizer = tokenizer
        self._base_folder = base_folder
        self._optional = optional
        self._forms: dict[tuple[bytes, bytes, int], _Form] = {}  # by config, head, size

    def read(self, folder: Path, adapter_id: str) -> Adapter:
        """The adapter in `folder`; weights and text are of one moment.

        RequestError(INVALID_ARG) with reason and remedy when the adapter cannot be served exactly;
        the caller adds which adapter that is (see about_adapter).
        """
        if not folder.is_dir():
            raise invalid(f"folder {folder} does not exist; check the adapter's path")
        files = _snapshot(folder, OPTIONAL_FILES if self._tokenizer else ())
        form, data = self._form(files)
        weights = HostWeights(data, form.plan)
        if not _fits(weights, self._dtype):
            self._check_values(files)
        if form.unchanged:
            unchanged = _listed(form.unchanged)
            _LOG.info("adapter %r leaves as in the base model: %s", adapter_id, unchanged)
        text = adapter_text(files, self._tokenizer) if self._tokenizer else NO_TEXT
        if text.warning:
            _LOG.warning("adapter %r: %s", adapter_id, text.warning)
        return Adapter(
            adapter_id=adapter_id,
            digest=_digest(files),
            rank=form.rank,
            num_pages=form.plan.num_pages,
            nbytes=form.plan.num_pages * bytes_per_page(self._sites, self._dtype),
            modules=form.modules,
            weights=weights,
            text=text,
        )

    def _form(self, files: _Files) -> tuple[_Form, torch.Tensor]:
        """With the bytes that the plan is for."""
        names = weight_files(files)
        content = files[names[0]].data
        key = files[CONFIG_FILE].digest, bytes(head_of(content))
        known = self._forms.get((*key, len(content))) if len(names) == 1 else None
        if known and known.tidy:
            return known, as_tensor(content)
        contents = self._contents(files)
        data, factors = as_tensor(content), contents.factors
        tidy = len(names) == 1 and is_tidy(factors, data, len(head_of(content)))
        if known or not tidy:
            data, factors = tidied(factors)
        if known:
            return known, data
        places = modules(self._sites)
        touched = {places[module][1].short_name for module in factors}
        form = _Form(
            PackPlan(factors, data, self._sites),
            max(pair.rank for pair in contents.factors.values()),
            tuple(name for name in short_names(self._sites) if name in touched),
            contents.unchanged,
            tidy,
        )
        if len(names) == 1:
            limit(self._forms, _MOST_PLANS)
            self._forms[*key, len(content)] = form
        return form, data

    def _contents(self, files: _Files) -> "_Contents":
        optional = self._optional
        return _contents(files, self._sites, self._max_rank, self._base_folder, optional)

    def _check_values(self, files: _Files) -> None:
        """RequestError when a value is not finite, or will not be in the pool."""
        contents = self._contents(files)
        check_finite(contents.changes)
        sizes = [(largest(a.float()), 1.0) for a, _, _ in contents.factors.values()]
        sizes += [(largest(b.float()), scaling) for _, b, scaling in contents.factors.values()]
        if not _are_finite(sizes, self._dtype):
            raise invalid(
                f"the weights hold values beyond the range of {self._dtype} once scaled; "
                "serve with --dtype bfloat16"
            )


def _snapshot(folder: Path, optional: Sequence[str] = ()) -> _Files:
    """The files of one moment; RequestError when a needed one is missing."""
    contents = read_settled(folder, (*optional, *needed_files(folder)), TEXT_LIMITS)
    check_all_present(folder, contents)
    return contents


def check_all_present(folder: Path, contents: Mapping[str, object]) -> None:
    """RequestError for a needed file of `folder` that is not among `contents`."""
    check_present(
        f"folder {folder}",
        contents,
        lambda name: (folder / name).is_file(),
        ErrorCode.INVALID_ARG,
    )


def _digest(files: _Files) -> str:
    """SHA-256 of the digests of the needed files, so that a byte moved between them changes it."""
    names = (CONFIG_FILE, *weight_files(files))
    return hashlib.sha256(b"".join(files[name].digest for name in names)).hexdigest()


def _tensors(files: _Files) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name in weight_files(files):
        add_shard(tensors, parse(name, files[name].data), name)
    return tensors


class _Contents(NamedTuple):
    changes: dict[str, torch.Tensor]  # the tensors, but for copies of the base model's
    factors: dict[str, Factors]
    unchanged: list[str]  # tensors and modules that are named, and are as in the base model


def _contents(
    files: _Files,
    sites: Sequence[LoRASite],
    max_rank: int,
    base_folder: Path | None,
    optional: Collection[str] = (),
) -> _Contents:
    config = parse_config(bytes(files[CONFIG_FILE].data))
    tensors = _tensors(files)
    changes = without_copies(tensors, base_folder) if base_folder else tensors
    factors = lora_factors(changes, config, sites, max_rank, optional)
    unchanged = sorted({*tensors.keys() - changes.keys(), *config.modules_to_save})
    return _Contents(changes, factors, unchanged)


def _fits(weights: HostWeights, dtype: torch.dtype) -> bool:
    """Whether the values are finite, and will be in a pool of `dtype`: a safe guess."""
    pieces = [piece for piece in weights.plan.pieces if piece.end > piece.start]
    sizes = in_parallel(lambda piece: largest(weights.numbers(piece)), pieces)
    factors = (max(piece.scaling, 1.0) for piece in pieces)
    return _are_finite(list(zip(sizes, factors, strict=True)), dtype)


def _are_finite(sizes: Sequence[tuple[float, float]], dtype: torch.dtype) -> bool:
    """Whether these magnitudes, each times its factor, are finite in `dtype`."""
    numbers = torch.tensor(sizes, dtype=torch.float32).prod(-1)
    return bool(numbers.to(dtype).isfinite().all())


def limit(found: dict[Any, Any], most: int) -> None:
    """Make room in what is remembered."""
    if len(found) >= most:
        found.clear()


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

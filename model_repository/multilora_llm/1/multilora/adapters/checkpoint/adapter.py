"""A PEFT LoRA checkpoint, read, checked and packed into rank pages (see rank_pages).

Law: an Adapter fits the base model, is finite in the pool's dtype and carries its scaling in b;
whatever cannot be served exactly is refused, never approximated.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
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
    check_finite,
    is_finite,
    lora_factors,
    without_copies,
)
from multilora.adapters.checkpoint.text import NO_TEXT, TEXT_LIMITS, AdapterText, adapter_text
from multilora.adapters.files import (
    CONFIG_FILE,
    OPTIONAL_FILES,
    PICKLE_FILE,
    PICKLE_REFUSAL,
    WEIGHTS_FILE,
    missing_weights,
    needed_files,
    read_settled,
    read_start,
    stamps,
    weight_files,
)
from multilora.base_model.sites import LoRASite, short_names
from multilora.errors import ErrorCode, RequestError, invalid, lfs_problem
from multilora.lora.rank_pages import PageTensors, bytes_per_page
from multilora_kernels.segments import PAGE_RANK
from multilora_text.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)
_SHOWN = 4  # names in a line of the log
_MOST_REMEMBERED, _MOST_FORMS = 200_000, 1000
_MOST_BYTES, _POINTER_BYTES = 8 << 20, 64
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


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
    folder: Path,
    sites: Sequence[LoRASite],
    max_rank: int,
    tokenizer: Tokenizer | None = None,
    base_folder: Path | None = None,
) -> Checkpoint:
    """The checked and finite factors of the adapter in `folder`; text and errors as in
    `read_adapter`."""
    files = _snapshot(folder, OPTIONAL_FILES if tokenizer else ())
    changes, factors, _ = _contents(files, sites, max_rank, base_folder)
    check_finite(changes)
    text = adapter_text(files, tokenizer) if tokenizer else NO_TEXT
    return Checkpoint(_digest(files), factors, tuple(sorted(text.end_token_ids)))


def read_adapter(
    folder: Path,
    adapter_id: str,
    sites: Sequence[LoRASite],
    dtype: torch.dtype,
    max_rank: int,
    tokenizer: Tokenizer | None = None,
    base_folder: Path | None = None,
) -> Adapter:
    """Read the PEFT (0.5 to 0.21) adapter in `folder` → Adapter with pages of `dtype`.

    Weights and text are of one moment. Without the base model's `tokenizer` the text is not read,
    and without its folder copies of its weights are refused.
    RequestError(INVALID_ARG) with reason and remedy when the adapter cannot be served exactly; the
    caller adds which adapter that is (see about_adapter).
    """
    if not folder.is_dir():
        raise invalid(f"folder {folder} does not exist; check the adapter's path")
    files = _snapshot(folder, OPTIONAL_FILES if tokenizer else ())
    with ThreadPoolExecutor(max_workers=1) as beside:  # a third of the work, without the GIL
        digest = beside.submit(_digest, files)
        changes, factors, unchanged = _contents(files, sites, max_rank, base_folder)
        rank = max(pair.rank for pair in factors.values())
        num_pages = -(-rank // PAGE_RANK)
        pages = _pack(factors, sites, num_pages, dtype)
        if not is_finite(pages.data):
            check_finite(changes)
            raise invalid(
                f"the weights hold values beyond the range of {dtype} once scaled; "
                "serve with --dtype bfloat16"
            )
    if unchanged:
        _LOG.info("adapter %r leaves as in the base model: %s", adapter_id, _listed(unchanged))
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


def _snapshot(folder: Path, optional: Sequence[str] = ()) -> dict[str, bytes]:
    """The files of one moment; RequestError when a needed one is missing."""
    contents = read_settled(folder, (*optional, *needed_files(folder)), TEXT_LIMITS)
    _check_complete(folder, contents)
    return contents


def _check_complete(folder: Path, names: Collection[str]) -> None:
    missing = missing_weights(names) if CONFIG_FILE in names else CONFIG_FILE
    if missing == WEIGHTS_FILE and (folder / PICKLE_FILE).is_file():
        raise invalid(PICKLE_REFUSAL)
    if missing:
        raise invalid(f"{missing} is missing in {folder}; save the adapter with save_pretrained")


def _digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 of the digests of the needed files, so that a byte moved between them changes it."""
    names = (CONFIG_FILE, *weight_files(files))
    parts = b"".join(hashlib.sha256(files[name]).digest() for name in names)
    return hashlib.sha256(parts).hexdigest()


def _tensors(files: Mapping[str, bytes]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name in weight_files(files):
        _add(tensors, _parse(name, files[name]), name)
    return tensors


def _add(tensors: dict[str, torch.Tensor], more: dict[str, torch.Tensor], file: str) -> None:
    if twice := tensors.keys() & more.keys():
        raise invalid(f"{file} holds {min(twice)!r}, as another shard does; save the adapter again")
    tensors.update(more)


def _parse(name: str, content: bytes) -> dict[str, torch.Tensor]:
    if problem := lfs_problem(content):
        raise invalid(f"{name} {problem}")
    try:
        return parse_safetensors(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise _corrupt(name, error) from None


def _corrupt(name: str, error: Exception) -> RequestError:
    return invalid(f"{name} is corrupt or cut short ({error}); copy or download it again")


class _Contents(NamedTuple):
    changes: dict[str, torch.Tensor]  # the tensors, but for copies of the base model's
    factors: dict[str, Factors]
    unchanged: list[str]  # tensors and modules that are named, and are as in the base model


def _contents(
    files: Mapping[str, bytes], sites: Sequence[LoRASite], max_rank: int, base_folder: Path | None
) -> _Contents:
    config = parse_config(files[CONFIG_FILE])
    tensors = _tensors(files)
    changes = without_copies(tensors, base_folder) if base_folder else tensors
    factors = lora_factors(changes, config, sites, max_rank)
    unchanged = sorted({*tensors.keys() - changes.keys(), *config.modules_to_save})
    return _Contents(changes, factors, unchanged)


class AdapterChecks:
    """What is wrong with adapters as far as it shows without reading their numbers: in their config
    and in the names and shapes of their tensors. Any thread. What is found is remembered."""

    def __init__(self, sites: Sequence[LoRASite], max_rank: int, base_folder: Path) -> None:
        self._sites = sites
        self._max_rank = max_rank
        self._base_folder = base_folder
        self._found: dict[Path, tuple[int, RequestError | None]] = {}  # with hash of stamps
        self._forms: dict[bytes, RequestError | None] = {}  # by a digest of the names and shapes

    def refusal(self, folder: Path) -> RequestError | None:
        """Why a request for the adapter in `folder` would be refused; None: it may be served."""
        try:
            version = hash(tuple(stamps(folder, needed_files(folder))))
            known, refusal = self._found.get(folder, (None, None))
            if known != version:
                refusal = self._check(_form(folder))
                _limit(self._found, _MOST_REMEMBERED)
                self._found[folder] = version, refusal
        except RequestError as error:
            return error
        return refusal

    def _check(self, parts: Mapping[str, bytes]) -> RequestError | None:
        """Adapters of one training differ in their numbers alone: one check does for all."""
        try:
            config = parse_config(parts[CONFIG_FILE])
        except RequestError as error:
            return invalid(error.message)  # without a traceback
        if config.rank_pattern or config.alpha_pattern:  # matching takes a process
            return None
        names = weight_files(parts)
        form = hashlib.sha256(json.dumps([config.r, *names]).encode())
        for name in names:
            form.update(hashlib.sha256(parts[name]).digest())
        if (key := form.digest()) not in self._forms:
            _limit(self._forms, _MOST_FORMS)
            self._forms[key] = None
            try:
                tensors = without_copies(_shapes(parts), self._base_folder)
                lora_factors(tensors, config, self._sites, self._max_rank)
            except RequestError as error:
                if error.code is ErrorCode.INVALID_ARG:
                    self._forms[key] = invalid(error.message)
        return self._forms[key]


def _limit(found: dict[Any, Any], most: int) -> None:
    if len(found) >= most:
        found.clear()


def _form(folder: Path) -> dict[str, bytes]:
    """The config of an adapter and the heads of its weights; RequestError when one is missing."""
    parts: dict[str, bytes] = {}
    for name in needed_files(folder):
        size = _MOST_BYTES
        if name != CONFIG_FILE:
            start = read_start(folder / name, _POINTER_BYTES) or b""
            if problem := lfs_problem(start):
                raise invalid(f"{name} {problem}")
            size = 8 + min(int.from_bytes(start[:8], "little"), _MOST_BYTES)
        if (content := read_start(folder / name, size)) is not None:
            parts[name] = content if name == CONFIG_FILE else content[8:]
    _check_complete(folder, parts)
    return parts


def _shapes(parts: Mapping[str, bytes]) -> dict[str, torch.Tensor]:
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
        _add(tensors, more, file)
    return tensors


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


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

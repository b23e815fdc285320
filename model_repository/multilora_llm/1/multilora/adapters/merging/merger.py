"""AdapterMerger: merges adapters once, keeps the result on disk, and names it by its parts.

Laws: a request may merge adapters that it may name, and no others. One recipe of the same files is
one adapter, however often it is asked for. Nothing here runs on the engine thread.
"""

import logging
import math
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from multilora.adapters.background_thread import background_thread
from multilora.adapters.checkpoint.adapter import Checkpoint, read_checkpoint
from multilora.adapters.files import OPTIONAL_FILES, FileStamp, needed_files, stamps
from multilora.adapters.memory.state import AdapterStates
from multilora.adapters.merging.arithmetic import as_checkpoint, check_mergeable, merge_factors
from multilora.adapters.merging.cache import MergeCache
from multilora.adapters.merging.recipe import MergeRecipe
from multilora.adapters.naming.catalog import AdapterCatalog
from multilora.adapters.naming.source import AdapterSource, about_adapter
from multilora.base_model.sites import LoRASite
from multilora.errors import ErrorCode, RequestError, internal
from multilora_api.adapter_names import MERGED_PREFIX
from multilora_api.admin import Origin
from multilora_text.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)
_THREADS = 4  # parts may have to be downloaded first
_MOST_QUEUED = 64
_KEPT_MERGES = 64  # folders on disk
_KEPT_DIGESTS = 1024
_KEPT_DOWNLOADS = 64
_FRESH_SECONDS = 30.0  # for which a download counts as the newest version
_SHORT = 16  # characters of the digest in an id

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")
_Version = tuple[Path, tuple[FileStamp, ...]]


class Merged(NamedTuple):
    """`dropped` are the ids of older merged adapters that were removed from the disk."""

    source: AdapterSource
    dropped: Sequence[str]


OnMerged = Callable[[Merged | RequestError], None]
_Job = tuple[MergeRecipe, Sequence[AdapterSource], OnMerged] | None


class AdapterMerger:
    """Any thread. `tokenizer` is the base model's, None without text. `folder_of` gives the local
    folder of a source, which may take a download."""

    def __init__(
        self,
        catalog: AdapterCatalog,
        states: AdapterStates,
        sites: Sequence[LoRASite],
        max_rank: int,
        tokenizer: Tokenizer | None,
        folder_of: Callable[[AdapterSource], Path],
        base_folder: Path | None = None,
        optional: Collection[str] = (),
    ) -> None:
        """`optional`: see lora_factors."""
        self.computed = 0  # merges that were not found on disk
        self._catalog = catalog
        self._states = states
        self._sites = sites
        self._max_rank = max_rank
        self._tokenizer = tokenizer
        self._folder_of = folder_of
        self._base_folder = base_folder
        self._optional = optional
        self._cache = MergeCache(_KEPT_MERGES)
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._computing = threading.Lock()  # one merge at a time: each takes memory
        self._lock = threading.Lock()  # guards what follows
        self._threads: list[threading.Thread] = []
        self._digests: OrderedDict[_Version, str] = OrderedDict()
        self._downloads: OrderedDict[AdapterSource, tuple[Path, float]] = OrderedDict()

    def submit(self, recipe: MergeRecipe, token: str, done: OnMerged) -> None:
        """Merge, and tell `done` the outcome on another thread.

        RequestError: as AdapterCatalog.resolve for the parts, or UNAVAILABLE when too many wait.
        """
        sources = [self._catalog.resolve(adapter_id, token) for adapter_id in recipe.ids]
        if self._jobs.qsize() >= _MOST_QUEUED:
            message = f"{_MOST_QUEUED} merges wait already; try again later"
            raise RequestError(ErrorCode.UNAVAILABLE, message)
        with self._lock:
            if not self._threads:  # most servers never merge and need no threads
                self._threads = [
                    background_thread("adapter-merger", self._loop) for _ in range(_THREADS)
                ]
                for thread in self._threads:
                    thread.start()
        self._jobs.put((recipe, sources, done))

    def close(self) -> None:
        """End the threads after the merges in progress, without waiting for them."""
        for _ in range(_THREADS):
            self._jobs.put(None)

    def _loop(self) -> None:
        while job := self._jobs.get():
            recipe, sources, done = job
            try:
                done(self._merge(recipe, sources))
            except RequestError as error:
                done(error)
            except Exception as error:
                _LOG.exception("merging %s failed", ", ".join(recipe.ids))
                done(internal(f"merging failed: {error!r}"))

    def _merge(self, recipe: MergeRecipe, sources: Sequence[AdapterSource]) -> Merged:
        folders = [self._folder(source) for source in sources]
        parts = list(zip(recipe.ids, folders, strict=True))
        digest = recipe.digest([self._digest(*part) for part in parts])
        dropped: list[str] = []
        if not self._cache.touch(digest):
            with self._computing:
                if not self._cache.touch(digest):  # no other thread has made it meanwhile
                    digest = self._compute(recipe, parts)
                    dropped = [_name(gone) for gone in self._cache.prune(self._unused)]
        location = str(self._cache.folder(digest))
        return Merged(AdapterSource(_name(digest), location, origin=Origin.MERGED), dropped)

    def _compute(self, recipe: MergeRecipe, parts: Sequence[tuple[str, Path]]) -> str:
        """Merge the files as they are now → digest of the merge."""
        start = time.monotonic()
        read = [self._read(*part) for part in parts]
        digest = recipe.digest([checkpoint.identity for checkpoint in read])
        merged = merge_factors([part.factors for part in read], recipe, int(digest[:15], 16))
        end_token_ids = sorted({number for part in read for number in part.end_token_ids})
        self._cache.add(digest, as_checkpoint(merged, self._sites, end_token_ids))
        self.computed += 1
        seconds = time.monotonic() - start
        _LOG.info("merged %s into %s in %.1f s", ", ".join(recipe.ids), _name(digest), seconds)
        return digest

    def _read(self, adapter_id: str, folder: Path) -> Checkpoint:
        with about_adapter(adapter_id):
            checkpoint = read_checkpoint(
                folder,
                self._sites,
                self._max_rank,
                self._tokenizer,
                self._base_folder,
                self._optional,
            )
            check_mergeable(checkpoint.factors, self._sites)
            return checkpoint

    def _folder(self, source: AdapterSource) -> Path:
        """The local folder of a part, whose download is used again while it is fresh."""
        if source.is_folder:
            return self._bring(source)
        now = time.monotonic()
        with self._lock:
            folder, until = self._downloads.get(source, (Path(), 0.0))
        if now >= until or not folder.is_dir():
            folder = self._bring(source)
            with self._lock:
                _keep(self._downloads, source, (folder, now + _FRESH_SECONDS), _KEPT_DOWNLOADS)
        return folder

    def _bring(self, source: AdapterSource) -> Path:
        with about_adapter(source.adapter_id):
            return self._folder_of(source)

    def _digest(self, adapter_id: str, folder: Path) -> str:
        """The identity of the files in `folder`, which are read only when they have changed."""
        names = (*(OPTIONAL_FILES if self._tokenizer else ()), *needed_files(folder))
        version = (folder, tuple(stamps(folder, names)))
        with self._lock:
            known = self._digests.get(version)
        if known is None:
            checkpoint = self._read(adapter_id, folder)
            known = checkpoint.identity
            with self._lock:  # the files may have changed since they were looked up
                _keep(self._digests, (folder, checkpoint.stamps), known, _KEPT_DIGESTS)
        return known

    def _unused(self, digest: str) -> float:
        """For how many seconds nobody has used the merge; inf: not since it was read."""
        state = self._states.get(_name(digest))
        if state and (state.pinned or state.wanted):
            return 0.0
        return time.monotonic() - state.last_used if state and state.last_used else math.inf


def _keep(kept: OrderedDict[KeyT, ValueT], key: KeyT, value: ValueT, limit: int) -> None:
    """Keep the `limit` newest values."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > limit:
        kept.popitem(last=False)


def _name(digest: str) -> str:
    return f"{MERGED_PREFIX}{digest[:_SHORT]}"

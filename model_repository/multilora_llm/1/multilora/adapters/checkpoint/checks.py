"""What adapters are, as far as it shows without reading their numbers: AdapterChecks, and on which
places of the base model they act."""

import contextlib
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from multilora.adapters.checkpoint.adapter import check_all_present, limit
from multilora.adapters.checkpoint.peft_config import parse_config
from multilora.adapters.checkpoint.peft_tensors import (
    POINTER_BYTES,
    lora_factors,
    shapes_of,
    without_copies,
)
from multilora.adapters.files import (
    CONFIG_FILE,
    FileStamp,
    being_written,
    needed_files,
    read_start,
    stamps,
    weight_files,
)
from multilora.base_model.sites import TABLES, BaseConfig, LoRASite, modules
from multilora.errors import ErrorCode, RequestError, invalid, lfs_problem

_MOST_REMEMBERED, _MOST_FORMS = 200_000, 1000
_MOST_BYTES = 8 << 20


def adapted_places(
    folder: Path, base: BaseConfig, max_rank: int, base_folder: Path
) -> frozenset[str]:
    """On which of the base's `optional` places the adapter in `folder` acts, by the names and
    shapes of its tensors; all that it names, where it cannot be served. RequestError when its files
    cannot be read."""
    parts = _form(folder, stamps(folder, needed_files(folder)))
    tensors = shapes_of(parts)
    named = {*TABLES} if any(table in name for name in tensors for table in TABLES) else set()
    with contextlib.suppress(RequestError):
        config = parse_config(parts[CONFIG_FILE])
        ends = {target.rpartition(".")[2] for target in config.target_parameters}
        named.update(name for name in base.optional if name.rpartition(".")[2] in ends)
        if not named and not any("." in name for name in base.optional):
            return frozenset()
        everywhere = base.with_places(base.optional).sites
        changes = without_copies(tensors, base_folder)
        factors = lora_factors(changes, config, everywhere, max_rank, base.optional)
        places = modules(everywhere)
        touched = {places[module][1].short_name for module in factors}
        return frozenset(name for name in base.optional if name in touched)
    return frozenset(named)


class AdapterChecks:
    """What is wrong with adapters as far as it shows without reading their numbers: in their config
    and in the names and shapes of their tensors. Any thread. What is found is remembered."""

    def __init__(
        self,
        sites: Sequence[LoRASite],
        max_rank: int,
        base_folder: Path,
        optional: Collection[str] = (),
    ) -> None:
        self._sites = sites
        self._optional = optional
        self._max_rank = max_rank
        self._base_folder = base_folder
        self._found: dict[Path, tuple[int, RequestError | None]] = {}  # with hash of stamps
        self._forms: dict[bytes, RequestError | None] = {}  # by a digest of the names and shapes

    def refusal(self, folder: Path) -> RequestError | None:
        """Why a request for the adapter in `folder` would be refused; None: it may be served."""
        try:
            found = stamps(folder, needed_files(folder))
            version = hash(tuple(found))
            known, refusal = self._found.get(folder, (None, None))
            if known != version:
                refusal = self._check(_form(folder, found))
                limit(self._found, _MOST_REMEMBERED)
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
        fields = [
            config.r, config.ties, config.target_parameters, config.swaps_experts, *names
        ]  # fmt: skip
        form = hashlib.sha256(json.dumps(fields).encode())
        for name in names:
            form.update(hashlib.sha256(parts[name]).digest())
        if (key := form.digest()) not in self._forms:
            limit(self._forms, _MOST_FORMS)
            self._forms[key] = None
            try:
                tensors = without_copies(shapes_of(parts), self._base_folder)
                lora_factors(tensors, config, self._sites, self._max_rank, self._optional)
            except RequestError as error:
                if error.code is ErrorCode.INVALID_ARG:
                    self._forms[key] = invalid(error.message)
        return self._forms[key]


def _form(folder: Path, found: Sequence[FileStamp]) -> dict[str, bytes]:
    """The config of an adapter and the heads of its weights, from the files with these stamps;
    RequestError when one is missing, or not that file any more."""
    parts: dict[str, bytes] = {}
    for stamp in found:
        name, size = stamp.name, _MOST_BYTES
        if name != CONFIG_FILE:
            start = read_start(folder / name, POINTER_BYTES, stamp) or b""
            if problem := lfs_problem(start):
                raise invalid(f"{name} {problem}")
            size = 8 + min(int.from_bytes(start[:8], "little"), _MOST_BYTES)
        if (content := read_start(folder / name, size, stamp)) is None:
            raise being_written(folder)
        parts[name] = content if name == CONFIG_FILE else content[8:]
    check_all_present(folder, parts)
    return parts

"""The folder of --adapters-dir: each PEFT folder below it is an adapter by its relative name.

Laws: `find` looks at the disk, and the remembered names serve for hints only. A name reaches only
folders below the root, with symlinks resolved. `scan` lists exactly what `find` finds. Names that
start with a dot are hidden, and the folders inside a PEFT folder (checkpoints) are part of it.
"""

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from multilora.adapters.files import (
    CONFIG_FILE,
    FILES,
    INNER_FOLDERS,
    FileStamp,
    is_shard,
    name_of,
    needed_files,
    path_of,
)
from multilora.adapters.naming.source import AdapterSource, check_name, named_error
from multilora.errors import RequestError, StartupError, invalid
from multilora_api.admin import Origin

Signature = int  # changes with the stamps of an adapter's files; there may be very many adapters
_MAX_DEPTH = 8
_QUICK_SECONDS = 0.02  # of a processor, which whoever asks for the names may spend on a scan


class _Folder(NamedTuple):
    path: str
    name: str  # relative to the root, "" for the root
    real: tuple[str, ...]  # paths without symlinks, from the root down to this folder


class AdapterFolders:
    """Used from any thread. `root` may be a symlink, even one that is changed while serving."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.abspath(root.expanduser())
        self.known: tuple[str, ...] = ()  # names of the latest scan, sorted
        self._found: dict[str, Signature] = {}  # what that scan returned
        self._seconds = 0.0  # of a processor, which it took
        if not os.path.isdir(self.root):
            raise StartupError(f"adapters_dir {str(root)!r} is no folder; check --adapters-dir")
        if os.path.isfile(os.path.join(self.root, CONFIG_FILE)):
            raise StartupError(
                f"adapters_dir {str(root)!r} is itself an adapter; give --adapters-dir the folder "
                "that holds it"
            )

    def find(self, adapter_id: str) -> AdapterSource | None:
        """The adapter that stands on the disk now under that name, if there is one.

        RequestError(INVALID_ARG) for a name that no adapter can have, and for a symlink that leads
        out of the root.
        """
        check_name(adapter_id)
        parts = path_of(adapter_id).split("/")
        if len(parts) > _MAX_DEPTH or any(part.startswith(".") for part in parts):
            return None
        path = self.location(adapter_id)
        if not _is_file(os.path.join(path, CONFIG_FILE)):
            return None
        above = (os.path.join(self.root, *parts[:depth]) for depth in range(1, len(parts)))
        if any(_is_file(os.path.join(folder, CONFIG_FILE)) for folder in above):
            return None
        root = os.path.realpath(self.root)
        links = (os.path.join(path, name) for name in (*FILES, *INNER_FOLDERS, *needed_files(path)))
        for target in (path, *filter(os.path.islink, links)):
            if not is_below(os.path.realpath(target), root):
                error = invalid(
                    "a symlink leads out of the adapters directory; copy the files into it, or "
                    "name their folder in LORA_ADAPTERS"
                )
                raise named_error(adapter_id, error)
        return AdapterSource(adapter_id, path, origin=Origin.DIRECTORY)

    def location(self, name: str) -> str:
        """The location that a source with this relative name has."""
        return os.path.join(self.root, path_of(name))

    def contains(self, path: str) -> bool:
        """Whether `path` is the root or below it, once symlinks are resolved."""
        return is_below(os.path.realpath(path), os.path.realpath(self.root))

    def names(self) -> tuple[str, ...]:
        """The names of all adapters, sorted: as they are now if a scan is quick, else as the latest
        scan has seen them. OSError as `scan`."""
        if self._seconds < _QUICK_SECONDS:
            self.scan()
        return self.known

    def scan(self, pause: Callable[[], None] = lambda: None) -> dict[str, Signature]:
        """Relative name of every adapter → signature of its files; the dict must not be changed.

        `pause` is called between any two folders. A folder that vanishes meanwhile is left out.
        Raises OSError only when the root itself cannot be listed.
        """
        began = time.thread_time()
        found = dict(self._adapters(pause))
        if found.keys() != self._found.keys():
            self.known = tuple(sorted(found))
        self._found = found
        self._seconds = time.thread_time() - began
        return found

    def _adapters(self, pause: Callable[[], None]) -> Iterator[tuple[str, Signature]]:
        root = os.path.realpath(self.root)
        waiting = [_subfolders(_Folder(root, "", (root,)), list(os.scandir(root)), root)]
        while waiting:
            folder = next(waiting[-1], None)
            if folder is None:
                waiting.pop()
                continue
            pause()
            with contextlib.suppress(OSError):
                entries = list(os.scandir(folder.path))
                if any(entry.name == CONFIG_FILE and entry.is_file() for entry in entries):
                    signature = _signature(entries, root)
                    if signature is not None and (name := _adapter_name(folder.name)):
                        yield name, signature
                elif len(folder.real) <= _MAX_DEPTH:
                    waiting.append(_subfolders(folder, entries, root))


def is_below(path: str, root: str) -> bool:
    """Whether `path` is `root` or below it; both are absolute and without symlinks."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def _subfolders(folder: _Folder, entries: list[os.DirEntry[str]], root: str) -> Iterator[_Folder]:
    for entry in entries:
        if entry.name.startswith("."):
            continue
        with contextlib.suppress(OSError):
            if not entry.is_dir():
                continue
            real = os.path.join(folder.real[-1], entry.name)
            if entry.is_symlink():
                real = os.path.realpath(entry.path)
                if not is_below(real, root) or real in folder.real:  # leads out, or in a circle
                    continue
            name = f"{folder.name}/{entry.name}" if folder.name else entry.name
            yield _Folder(entry.path, name, (*folder.real, real))


def _signature(entries: list[os.DirEntry[str]], root: str) -> Signature | None:
    """Of an adapter's files; None when one is a symlink that leads out of `root`."""
    stamps: list[FileStamp] = []
    for name, entry in _with_inner(entries):
        is_file = name in FILES or is_shard(name)
        if not is_file and name not in INNER_FOLDERS:
            continue
        if entry.is_symlink() and not is_below(os.path.realpath(entry.path), root):
            return None
        if is_file:
            with contextlib.suppress(OSError):
                stamps.append(FileStamp.of(name, entry.stat()))
    return hash(tuple(sorted(stamps)))


def _with_inner(entries: list[os.DirEntry[str]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The entries of an adapter's folder with their names, those of INNER_FOLDERS too."""
    for entry in entries:
        yield entry.name, entry
        if entry.name in INNER_FOLDERS:
            with contextlib.suppress(OSError):
                for inner in os.scandir(entry.path):
                    yield f"{entry.name}/{inner.name}", inner


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # missing, forbidden, or a name that no file can have
        return False


def _adapter_name(path: str) -> str:
    """The adapter's name of a relative path; "" when it is none that an adapter can have."""
    with contextlib.suppress(RequestError, ValueError):
        check_name(name := name_of(path))
        return name
    return ""

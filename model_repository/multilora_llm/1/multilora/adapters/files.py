"""Files of adapters: which ones matter, their stamps, their bytes at one moment, and the disk.

Laws: a pickle is never opened. What `read_settled` returns stood in the folder together: the stamps
before and after the reading agree with those of the files that were read, and the last write was a
while ago, so that a folder into which somebody is still copying is waited for instead of being
served half. Weights are read and hashed in pieces, by as many threads as leave the engine its
processors.
"""

import contextlib
import errno
import functools
import hashlib
import mmap
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from multilora.adapters.background_thread import yield_processor
from multilora.errors import ErrorCode, RequestError, invalid
from multilora_text.checkpoint_text import MODEL_CONFIG, TEXT_FILES

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
PICKLE_REFUSAL = (
    f"{PICKLE_FILE} is a pickle, which can run code and is never opened; "
    "`multilora adapters convert FOLDER` makes safetensors of it, where a copy of the folder is"
)
NEEDED_FILES = (CONFIG_FILE, WEIGHTS_FILE)  # of an adapter whose weights are in one file
# Of one in shards, which transformers writes: their names say how many there are.
INDEX_FILES = ("adapter_model.safetensors.index.json", "model.safetensors.index.json")
_SHARD = re.compile(r"adapter_model-(\d{5})-of-(\d{5})\.safetensors")
# A config.json there is the base model's.
OPTIONAL_FILES = tuple(name for name in TEXT_FILES if name != MODEL_CONFIG)
FILES = (*OPTIONAL_FILES, *NEEDED_FILES)
INNER_FOLDERS = frozenset(name.partition("/")[0] for name in FILES if "/" in name)

# How long ago the last write must be. Between two files of one copy less time passes.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_QUIET_SECONDS = 0.05
_ATTEMPTS = 8
_PAUSE_SECONDS = 0.1
_PIECE_BYTES = 4 << 20
_MOST_READERS = 8

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class FileStamp(NamedTuple):
    """Two stamps of a file differ when it has been written or replaced in between, even by a tool
    that restores the mtime."""

    name: str
    mtime_ns: int
    ctime_ns: int
    size: int
    inode: int

    @staticmethod
    def of(name: str, status: os.stat_result) -> "FileStamp":
        return FileStamp(
            name, status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
        )


class FileBytes(NamedTuple):
    """What was read of a file. `digest` tells contents apart: their SHA-256, or of weights that of
    the SHA-256s of their pieces."""

    data: bytes | memoryview
    digest: bytes
    stamp: FileStamp


def path_of(name: str) -> str:
    """A name as a path. The Python backend's interpreter takes paths for ASCII whatever the locale
    says; all other bytes of a path are surrogates there. A path stays as it is."""
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


def name_of(path: str) -> str:
    """The reverse of `path_of`; ValueError when the path is not UTF-8."""
    return os.fsencode(path).decode("utf-8")


def is_shard(name: str) -> bool:
    return _SHARD.fullmatch(name) is not None


def weight_files(names: Iterable[str]) -> list[str]:
    """Those of `names` that are an adapter's weights: the one file, or else the shards."""
    found = sorted(name for name in names if name == WEIGHTS_FILE or is_shard(name))
    return [WEIGHTS_FILE] if WEIGHTS_FILE in found else found


def missing_weights(names: Iterable[str]) -> str:
    """The first file that is missing among `names`, for these to hold all weights; "" if none."""
    found = weight_files(names)
    if not found:
        return WEIGHTS_FILE
    if found == [WEIGHTS_FILE]:
        return ""
    number = max(name.rpartition("-")[2] for name in found)  # 00003.safetensors
    wanted = (f"adapter_model-{i:05}-of-{number}" for i in range(1, int(number[:5]) + 1))
    return next((name for name in wanted if name not in found), "")


def needed_files(folder: Path | str) -> list[str]:
    """The config and the weights of the adapter in `folder`, as its names are now."""
    if os.path.isfile(os.path.join(folder, WEIGHTS_FILE)):
        return list(NEEDED_FILES)
    try:
        shards = weight_files(os.listdir(folder))
    except OSError:
        shards = []
    return [CONFIG_FILE, *(shards or [WEIGHTS_FILE])]


def read_settled(
    folder: Path,
    names: Sequence[str],
    limits: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, FileBytes]:
    """The bytes of those files of `names` that are in `folder`, all of one moment.

    `limits` in bytes, by name. RequestError: INVALID_ARG for a file that is not regular, may not be
    read or is over its limit, UNAVAILABLE when the files keep changing.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        before = stamps(folder, names)
        for stamp in before:
            if stamp.size > limits.get(stamp.name, stamp.size):
                raise too_large(stamp.name, limits[stamp.name])
        if wait := _seconds_until_quiet(before):
            time.sleep(wait)
        read = [_read(folder / stamp.name, stamp) for stamp in before]
        contents = {content.stamp.name: content for content in read if content}
        if len(contents) == len(before) and stamps(folder, names) == before:
            return contents
    raise being_written(folder)


def being_written(folder: Path) -> RequestError:
    message = f"folder {folder} is being written; try again when it is complete"
    return RequestError(ErrorCode.UNAVAILABLE, message)


def too_large(what: str, limit: int) -> RequestError:
    return invalid(f"{what} is larger than {limit} bytes, the most that is read; make it smaller")


def stamps(folder: Path, names: Sequence[str]) -> list[FileStamp]:
    """The stamps of those files of `names` that are in `folder`; RequestError as `read_settled`."""
    found: list[FileStamp] = []
    for name in _listed(folder, names):
        try:
            status = os.stat(os.path.join(folder, name))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise _unreadable(folder / name, error) from None
        if not stat.S_ISREG(status.st_mode):
            raise invalid(f"{name} in {folder} is not a regular file; copy the adapter again")
        found.append(FileStamp.of(name, status))
    return found


def _listed(folder: Path, names: Sequence[str]) -> Sequence[str]:
    """Those of `names` that may be in `folder`: fewer calls of the system, at each of which a
    thread leaves the interpreter and takes it from the engine's again."""
    if len(names) <= len(NEEDED_FILES):
        return names
    try:
        there = {*os.listdir(folder)}
    except OSError:  # stat says what is wrong, or that files may be read though not listed
        return names
    return [name for name in names if name.partition("/")[0] in there]


def check_present(
    where: str,
    names: Collection[str],
    has: Callable[[str], object],
    code: ErrorCode = ErrorCode.NOT_FOUND,
) -> None:
    """RequestError unless `names`, those of an adapter's files that were found at `where`, are all
    that it needs. `has` says whether there is a file that was not looked for."""
    if CONFIG_FILE not in names:
        message = f"{where} has no {CONFIG_FILE}, so it is no PEFT adapter; check the location"
        raise RequestError(code, message)
    if missing := missing_weights(names):
        if missing == WEIGHTS_FILE and has(PICKLE_FILE):
            raise invalid(f"{where}: {PICKLE_REFUSAL}")
        message = f"{where} has no {missing}; save the adapter there with save_pretrained"
        raise RequestError(code, message)


def _seconds_until_quiet(stamps: list[FileStamp]) -> float:
    """How long to wait until the last write is long enough ago.

    The clock of a network file system may differ from this machine's, so the answer never exceeds
    _QUIET_SECONDS.
    """
    if any(stamp.size == 0 for stamp in stamps):
        return _QUIET_SECONDS  # a truncated file shows its new size before its new times
    age = time.time() - max((stamp.ctime_ns for stamp in stamps), default=0) / 1e9
    return min(_QUIET_SECONDS, max(0.0, _QUIET_SECONDS - age))


def read_start(path: Path, size: int, stamp: FileStamp) -> bytes | None:
    """Up to `size` bytes of the file with `stamp`; None when it is not there any more.
    RequestError: it cannot be read."""
    with _opened(path, size, stamp) as descriptor:
        if descriptor is None:
            return None
        content = b""
        while more := os.read(descriptor, size - len(content)):
            content += more
        return content


def in_parallel(work: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> list[ResultT]:
    """What `work`, which holds the interpreter only for moments, returns for each item."""
    items = list(items)
    if len(items) == 1:
        return [work(items[0])]
    return list(_readers().map(work, items))


@functools.cache
def _readers() -> ThreadPoolExecutor:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    most = min(_MOST_READERS, max(1, processors // 2))
    return ThreadPoolExecutor(most, "adapter-reader", yield_processor)


def _read(path: Path, stamp: FileStamp) -> FileBytes | None:
    """The whole file; as read_start."""
    size = stamp.size
    if not weight_files([path.name]):
        if (content := read_start(path, size, stamp)) is None:
            return None
        return FileBytes(content, hashlib.sha256(content).digest(), stamp)
    with _opened(path, size, stamp) as descriptor:
        if descriptor is None:
            return None
        data = _memory(size)

        def piece(at: int) -> tuple[int, bytes]:
            return _piece(descriptor, data[at : at + _PIECE_BYTES], at)

        read = in_parallel(piece, range(0, size, _PIECE_BYTES))
    digest = hashlib.sha256(b"".join(each for _, each in read)).digest()
    return FileBytes(data[: sum(count for count, _ in read)], digest, stamp)


def _memory(size: int) -> memoryview:
    """Private memory, which the threads that fill it take from the system; MemoryError."""
    if size < _PIECE_BYTES:  # a process may have tens of thousands of mappings, not more
        return memoryview(bytearray(size))
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        raise MemoryError from None
    with contextlib.suppress(OSError, AttributeError):  # where the system has huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def _piece(descriptor: int, target: memoryview, offset: int) -> tuple[int, bytes]:
    """Fill `target` from the file → how many bytes there were, and their SHA-256."""
    count = 0
    while more := os.preadv(descriptor, [target[count:]], offset + count):
        count += more
        if count == len(target):
            break
    return count, hashlib.sha256(target[:count]).digest()


@contextlib.contextmanager
def _opened(path: Path, size: int, stamp: FileStamp) -> Iterator[int | None]:
    """A descriptor of the file with `stamp`, of which `size` bytes are read, or None: it is another
    file that `path` leads to, or none. Links may point elsewhere for a moment.

    Opening without blocking keeps a fifo that has taken the file's place from holding the thread.
    """
    descriptor = None
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = None if descriptor is None else os.fstat(descriptor)
        same = status is not None and FileStamp.of(stamp.name, status) == stamp
        yield descriptor if same else None
    except OSError as error:
        raise _unreadable(path, error) from None
    except MemoryError:
        raise invalid(
            f"{path} has {size} bytes, more than there is memory for; make it smaller"
        ) from None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _unreadable(path: Path, error: OSError) -> RequestError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return invalid(f"{path} cannot be read (Permission denied); let the server's user read it")
    return RequestError(
        ErrorCode.UNAVAILABLE, f"{path} cannot be read ({error.strerror}); try again"
    )


@contextlib.contextmanager
def on_disk(folder: Path) -> Iterator[None]:
    """Turn an OSError within into a RequestError (UNAVAILABLE) about the disk of `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            message = f"the disk of {folder} is full; free some of it"
        else:
            message = f"{folder} cannot be written ({error.strerror or error}); check the disk"
        raise RequestError(
            ErrorCode.UNAVAILABLE, f"{message}, or set HF_HUB_CACHE to another folder"
        ) from None


def check_room(folder: Path, num_bytes: int) -> None:
    """UNAVAILABLE unless `num_bytes` more fit on the disk of `folder`."""
    with on_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise RequestError(
            ErrorCode.UNAVAILABLE,
            f"the disk of {folder} is full: {num_bytes / 1e6:.1f} MB are needed and "
            f"{free / 1e6:.1f} MB free; free some of it, or set HF_HUB_CACHE to another folder",
        )

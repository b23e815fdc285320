"""Files that change while they are read: what comes out is of one version, never a mixture."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from multilora.adapters import files as adapter_files
from multilora.adapters.checkpoint import adapter as adapter_module
from multilora.adapters.checkpoint.adapter import Adapter
from multilora.adapters.checkpoint.checks import AdapterChecks
from multilora.adapters.checkpoint.text import NO_TEXT
from multilora.adapters.files import FileBytes, FileStamp
from multilora.base_model.config import NativeConfig
from multilora.errors import ErrorCode, RequestError
from multilora_text.tokenizer import Tokenizer
from support.chats import chat
from support.engine.files import CONFIG, WEIGHTS, read, settle, write
from support.engine.reading import read_adapter
from support.tiny.adapters import make_adapter
from support.tiny.base import write_adapter, write_base
from support.tiny.tokenizers import byte_level


@contextmanager
def running(work) -> Iterator[None]:
    """`work()` again and again beside the test."""
    done = threading.Event()

    def loop() -> None:
        while not done.is_set():
            work()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_folder_that_is_never_still_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next write follows each read: a thread that writes may be held up on a busy machine."""
    write(tmp_path, "one")
    really_read = adapter_files.read_start

    def and_then_write(path: Path, size: int, stamp: FileStamp) -> bytes | None:
        content = really_read(path, size, stamp)
        write(tmp_path, "two")
        return content

    monkeypatch.setattr(adapter_files, "read_start", and_then_write)
    with pytest.raises(RequestError) as caught:
        read(tmp_path)
    assert caught.value.code is ErrorCode.UNAVAILABLE
    assert f"folder {tmp_path} is being written; try again" in caught.value.message


@pytest.mark.parametrize("restored", [False, True], ids=["mtime", "mtime restored"])
def test_a_write_during_the_reading_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored: bool
) -> None:
    """The weights change, at the same size, between the reading of the two files."""
    write(tmp_path, "old")
    settle()
    really_read = adapter_files.read_start

    def and_then_write(path: Path, size: int, stamp: FileStamp) -> bytes | None:
        content = really_read(path, size, stamp)
        if path.name == CONFIG and content == b"old":
            status = os.stat(tmp_path / WEIGHTS)
            write(tmp_path, "new")
            if restored:
                os.utime(tmp_path / WEIGHTS, ns=(status.st_atime_ns, status.st_mtime_ns))
        return content

    monkeypatch.setattr(adapter_files, "read_start", and_then_write)
    assert read(tmp_path) == {CONFIG: "new", WEIGHTS: "new"}


class Detour:
    """`folder` is a link to a, but to b while the first `what` of it is opened: the paths lead to
    the same files before and after."""

    def __init__(self, folder: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken = False
        self._folder, self._what, self._open = folder, what, os.open
        folder.symlink_to("a")
        monkeypatch.setattr(os, "open", self._detour)

    def _detour(self, path: Path, *arguments: Any, **keywords: Any) -> int:
        if self.taken or Path(path) != self._folder / self._what:
            return self._open(path, *arguments, **keywords)
        self.taken = True
        self._lead_to("b")
        descriptor = self._open(path, *arguments, **keywords)
        self._lead_to("a")
        return descriptor

    def _lead_to(self, target: str) -> None:
        self._folder.unlink()
        self._folder.symlink_to(target)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_link_that_leads_elsewhere_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for version in "ab":
        write(tmp_path / version, version)
    detour = Detour(tmp_path / "adapter", name, monkeypatch)
    assert read(tmp_path / "adapter") == {CONFIG: "a", WEIGHTS: "a"}
    assert detour.taken


def test_what_is_wrong_elsewhere_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the adapter that the link leads to, as its stamps were taken."""
    base_folder = write_base(tmp_path / "base")
    for version in "ab":
        write_adapter(tmp_path / version, seed=1)
    (tmp_path / "b" / CONFIG).write_text("{}")
    checks = AdapterChecks(NativeConfig.from_folder(base_folder).sites, 16, base_folder)
    detour = Detour(tmp_path / "adapter", CONFIG, monkeypatch)
    refusal = checks.refusal(tmp_path / "adapter")
    assert detour.taken and refusal and refusal.code is ErrorCode.UNAVAILABLE
    assert checks.refusal(tmp_path / "adapter") is None


def versions_read(folder: Path, seconds: float) -> list[set[str]]:
    """Of each read that was not refused as busy, the versions its files are of."""
    seen: list[set[str]] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            seen.append(set(read(folder).values()))
        except RequestError as error:
            assert error.code is ErrorCode.UNAVAILABLE
    return seen


@pytest.mark.parametrize("replace", ["in place", "renamed files", "swapped symlink"])
def test_never_a_mixture(tmp_path: Path, replace: str) -> None:
    """A thread goes on replacing the folder, in the ways people do, while it is read."""
    folder, versions = tmp_path / "adapter", iter(range(10**6))
    for name in ("a", "b"):
        write(tmp_path / name, name)
    folder.symlink_to("a")
    if replace != "swapped symlink":
        folder.unlink()
        write(folder, "first")

    stalled: set[str] = set()  # this machine may be busy: versions written with a long pause

    def change() -> None:
        version, start = str(next(versions)), time.monotonic()
        if replace == "swapped symlink":
            (tmp_path / "link").symlink_to("ab"[int(version) % 2])
            os.rename(tmp_path / "link", folder)
            return time.sleep(0.001)
        write(tmp_path / "new", version)
        for name in (CONFIG, WEIGHTS):
            if replace == "in place":
                (folder / name).write_text(version)
            else:
                os.rename(tmp_path / "new" / name, folder / name)
            time.sleep(0.01)
        if time.monotonic() - start > 0.04:
            stalled.add(version)
        time.sleep(0.08)

    with running(change):
        seen = versions_read(folder, seconds=2)
    mixtures = [versions for versions in seen if len(versions) > 1]
    assert all(mixture & stalled for mixture in mixtures), mixtures
    assert len(seen) > 3


def test_an_adapter_is_whole_while_its_folder_is_rewritten(
    tmp_path: Path, base: NativeConfig
) -> None:
    """Two versions of different ranks: each digest has its own rank, and no read is refused."""
    for rank in (4, 8):
        make_adapter(tmp_path / f"r{rank}", r=rank)
    folder = tmp_path / "adapter"
    folder.mkdir()
    ranks = iter([4, 8] * 10_000)

    def change() -> None:
        version = tmp_path / f"r{next(ranks)}"
        for name in (CONFIG, WEIGHTS):
            (folder / name).write_bytes((version / name).read_bytes())
        time.sleep(0.15)

    def load(where: Path) -> Adapter:
        return read_adapter(where, "mine", base.sites, torch.float32, max_rank=16)

    change()
    want = {load(tmp_path / f"r{rank}").digest: rank for rank in (4, 8)}
    seen: Counter[int] = Counter()
    with running(change):
        deadline = time.monotonic() + 60
        while len(seen) < 2 or seen.total() < 12:
            assert time.monotonic() < deadline
            adapter = load(folder)
            assert want[adapter.digest] == adapter.rank
            seen[adapter.rank] += 1


NEW_TEMPLATE = "new:{{ messages[0]['content'] }}"
AFTER = ("chat_template.jinja", CONFIG, WEIGHTS, "parsing")


def write_version(folder: Path, rank: int, template: str) -> None:
    write_adapter(folder, seed=rank, rank=rank)
    (folder / "chat_template.jinja").write_text(template)


@pytest.mark.parametrize("changed", ["everything", "the template alone"])
@pytest.mark.parametrize("after", AFTER)
def test_weights_and_template_are_of_one_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str, changed: str
) -> None:
    """Files are replaced once, after one of them was read, or while the weights are unpacked."""
    base_folder, folder = write_base(tmp_path / "base"), tmp_path / "adapter"
    byte_level().save(str(base_folder / "tokenizer.json"))
    base, tokenizer = NativeConfig.from_folder(base_folder), Tokenizer.from_folder(base_folder)
    write_version(folder, 4, NEW_TEMPLATE.replace("new", "old"))
    settle()
    replaced: list[bool] = []

    def replace() -> None:
        if not replaced:
            replaced.append(True)
            (folder / "chat_template.jinja").write_text(NEW_TEMPLATE)
            if changed == "everything":
                write_adapter(folder, seed=8, rank=8)

    really_read, really_parse = adapter_files._read, adapter_module.parse

    def and_then_replace(path: Path, stamp: FileStamp) -> FileBytes | None:
        content = really_read(path, stamp)
        if path.name == after:
            replace()
        return content

    def replace_and_parse(name: str, content: bytes | memoryview) -> dict[str, torch.Tensor]:
        if after == "parsing":
            replace()
        return really_parse(name, content)

    monkeypatch.setattr(adapter_files, "_read", and_then_replace)
    monkeypatch.setattr(adapter_module, "parse", replace_and_parse)
    adapter = read_adapter(folder, "mine", base.sites, torch.float32, 16, tokenizer)
    assert replaced
    text = chat(tokenizer, [{"role": "user", "content": "hi"}], adapter.text.templates)
    if after == "parsing":
        assert (adapter.rank, text) == (4, "old:hi"), "all that was read is of before"
    else:
        assert (adapter.rank, text) == (8 if changed == "everything" else 4, "new:hi")


def test_text_is_no_part_of_the_digest_and_is_not_read_without_a_tokenizer(tmp_path: Path) -> None:
    base = NativeConfig.from_folder(write_base(tmp_path / "base"))
    folder = tmp_path / "adapter"
    write_version(folder, 4, NEW_TEMPLATE)
    first = read_adapter(folder, "mine", base.sites, torch.float32, 16)
    (folder / "chat_template.jinja").write_bytes(b"\xff")  # which would be refused
    again = read_adapter(folder, "mine", base.sites, torch.float32, 16)
    assert first.key == again.key and again.text is NO_TEXT

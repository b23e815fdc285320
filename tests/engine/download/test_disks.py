"""Disks that are full, fail or may only be read: errors say where, and pass with their cause."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp  # noqa: F401 - once unprivileged, nothing of a Python in somebody's home can be read
import pytest

from multilora.adapters.merging.cache import MergeCache
from multilora.errors import ErrorCode, RequestError
from support.engine.downloads import WEIGHTS
from support.engine.files import unprivileged
from support.engine.object_stores import WEIGHTS_PATH, fetch, url
from support.fake.hub import HubServer

MERGE = {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS}


def of_hub(hub: HubServer) -> Path:
    return fetch("org/sql")


def of_store(hub: HubServer) -> Path:
    return fetch(url(hub))


def merged(hub: HubServer) -> Path:
    kept = MergeCache(4)
    if not kept.touch("0123"):
        kept.add("0123", MERGE)
    assert kept.touch("0123")
    return kept.folder("0123")


Bring = Callable[[HubServer], Path]
ways = pytest.mark.parametrize("bring", [of_hub, of_store, merged])


def refusal(bring: Bring, hub: HubServer, cache: Path, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        bring(hub)
    assert caught.value.code is ErrorCode.UNAVAILABLE
    message = caught.value.message
    assert words in message and str(cache) in message and "HF_HUB_CACHE" in message


@contextlib.contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file of this process grows beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    """Root's folders are that for everybody else."""
    own = [folder for folder in folders if folder.stat().st_uid == os.geteuid()]
    for folder in own:
        folder.chmod(0o555)
    yield
    for folder in own:
        folder.chmod(0o755)


@ways
def test_a_file_that_may_not_grow(hub: HubServer, cache: Path, bring: Bring) -> None:
    with small_files(300_000):
        refusal(bring, hub, cache, "cannot be written (File too large)")
    left = [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 10_000]
    assert not left, "what arrived takes room on a full disk"
    if bring is merged:
        assert not list((cache / "merged-adapters").iterdir())
    assert (bring(hub) / "adapter_model.safetensors").read_bytes() == WEIGHTS


@ways
def test_a_cache_that_may_only_be_read(hub: HubServer, cache: Path, bring: Bring) -> None:
    with unprivileged(cache), read_only(cache):
        refusal(bring, hub, cache, "cannot be written (Permission denied)")
    assert not list(cache.iterdir())
    assert (bring(hub) / "adapter_model.safetensors").read_bytes() == WEIGHTS
    with unprivileged(cache), read_only(*(path for path in cache.rglob("*") if path.is_dir())):
        assert bring(hub).is_dir(), "what is there is served"


@pytest.mark.parametrize("bring", [of_hub, of_store])
def test_a_disk_that_loses_what_it_took(hub: HubServer, cache: Path, bring: Bring) -> None:
    """It tells so only when asked whether the bytes have arrived, as /dev/null does."""
    hub.faults[WEIGHTS_PATH] = "broken"
    with pytest.raises(RequestError):
        bring(hub)
    hub.faults.clear()
    begun = [path for path in cache.rglob("*") if "incomplete" in str(path) and path.is_file()]
    weights = max(begun, key=lambda path: path.stat().st_size)
    weights.unlink()
    weights.symlink_to("/dev/null")
    refusal(bring, hub, cache, "cannot be written (Invalid argument)")
    assert not weights.is_symlink(), "nobody knows which bytes it holds"
    assert (bring(hub) / "adapter_model.safetensors").read_bytes() == WEIGHTS


def test_a_small_disk_that_is_full(hub: HubServer, cache: Path) -> None:
    """A real one, where mounting is allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(cache)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        for bring in (of_hub, of_store, merged):
            refusal(bring, hub, cache, "is full")
        subprocess.run(["mount", "-o", "remount,size=16m", str(cache)], check=True)
        for bring in (of_hub, of_store, merged):
            assert (bring(hub) / "adapter_model.safetensors").read_bytes() == WEIGHTS
    finally:
        subprocess.run(["umount", "-l", str(cache)], check=True)

"""Adapters from object stores through fsspec: memory:// and a web server on loopback."""

import importlib.util
import json
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest

from multilora.adapters.naming.source import AdapterSource
from multilora.download import object_store
from multilora.download.folder import adapter_folder
from multilora.errors import ErrorCode, RequestError
from support.engine.downloads import WEIGHTS, names_in, use_hub, write_adapter
from support.engine.object_stores import FILES, SIZE, WEIGHTS_PATH, check_whole, fetch, refusal, url
from support.fake.hub import HubServer

MEMORY = "memory://adapters/sql"


@pytest.fixture(autouse=True)
def no_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9", cache)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    files.put(str(write_adapter(tmp_path / "upload")), "/adapters/sql", recursive=True)
    yield files
    files.rm("/adapters", recursive=True)


def test_a_store_is_read_once_per_version(memory: fsspec.AbstractFileSystem, cache: Path):
    first = fetch(MEMORY)
    check_whole(first)
    assert first.is_relative_to(cache / "object-stores")
    changed = (first / "adapter_model.safetensors").stat().st_mtime_ns
    assert fetch(MEMORY) == first == fetch(MEMORY + "/")
    assert (first / "adapter_model.safetensors").stat().st_mtime_ns == changed
    memory.pipe_file("/adapters/sql/adapter_model.safetensors", WEIGHTS[::-1])
    second = fetch(MEMORY)
    assert second != first and names_in(second) == FILES
    assert (second / "adapter_model.safetensors").read_bytes() == WEIGHTS[::-1]
    check_whole(first)  # whoever is still reading it reads one version


def test_a_template_in_a_folder_comes_too(memory: fsspec.AbstractFileSystem, cache: Path):
    template = "additional_chat_templates/tool_use.jinja"
    memory.pipe_file(f"/adapters/sql/{template}", b"{{ tools }}")
    assert (fetch(MEMORY) / template).read_text() == "{{ tools }}"


def test_old_versions_do_not_pile_up(memory: fsspec.AbstractFileSystem, cache: Path):
    for number in range(5):
        memory.pipe_file("/adapters/sql/adapter_model.safetensors", bytes([number]) * 100)
        folder = fetch(MEMORY)
        assert (folder / "adapter_model.safetensors").read_bytes() == bytes([number]) * 100
    assert len(list(cache.glob("object-stores/*/versions/*"))) == 2


def test_the_version_that_may_be_open_stays_whatever_the_times_say(
    memory: fsspec.AbstractFileSystem,
):
    found: list[Path] = []
    for number in range(3):
        memory.pipe_file("/adapters/sql/adapter_model.safetensors", bytes([number]) * 100)
        if len(found) == 2:
            found[0].chmod(0o755)  # it looks newer than the second one, as after a clock's jump
        found.append(fetch(MEMORY))
    assert [folder.is_dir() for folder in found] == [False, True, True]


def test_what_is_missing_is_said(memory: fsspec.AbstractFileSystem):
    error = refusal("memory://adapters/none")
    assert error.code is ErrorCode.NOT_FOUND and "memory://adapters/none" in error.message
    path = "/adapters/sql/adapter_model"
    memory.mv(path + ".safetensors", path + ".bin")
    error = refusal(MEMORY)
    assert error.code is ErrorCode.INVALID_ARG and "pickle" in error.message


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("memory://adapters/sql::file:///etc", "chained"),
        ("file:///etc", "as a path"),
        ("local:///etc", "as a path"),
        ("memory://adapters/sql/../../other", "'..'"),
        ("https://127.0.0.1:9/sql?signature=secret", "without ? and #"),
        ("nonsense://bucket/sql", "nonsense:// is no scheme"),
    ],
)
def test_odd_urls_are_refused(location: str, words: str):
    error = refusal(location)
    assert error.code is ErrorCode.INVALID_ARG and words in error.message
    assert "secret" not in error.message


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch):
    def without_driver(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    if importlib.util.find_spec("s3fs"):
        monkeypatch.setattr(object_store, "url_to_fs", without_driver)
    error = refusal("s3://bucket/sql")
    assert error.code is ErrorCode.INVALID_ARG and "pip install s3fs" in error.message


def test_a_url_has_no_revision():
    with pytest.raises(RequestError, match="no revisions"):
        adapter_folder(AdapterSource("sql", MEMORY, "v1"))


def test_too_large_is_refused_before_it_is_read(memory: fsspec.AbstractFileSystem, cache: Path):
    error = refusal(MEMORY, max_bytes=SIZE)
    assert error.code is ErrorCode.INVALID_ARG and "--adapter-max-size" in error.message
    assert not list(cache.rglob("*.safetensors"))
    check_whole(fetch(MEMORY))


def test_a_web_server_is_a_store_with_versions(web: HubServer, tmp_path: Path):
    first = fetch(url(web))
    check_whole(first)
    assert fetch(url(web)) == first and web.sent[WEIGHTS_PATH] == SIZE
    write_adapter(tmp_path / "hub/org/sql", weights=WEIGHTS[::-1])
    second = fetch(url(web))
    assert (second / "adapter_model.safetensors").read_bytes() == WEIGHTS[::-1]


def test_many_threads_bring_it_once(web: HubServer):
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(fetch(url(web)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4 and len(set(folders)) == 1
    assert web.sent[WEIGHTS_PATH] == SIZE


class _Plain(SimpleHTTPRequestHandler):
    """Python's own file server: no etags, no ranges; `gets` counts what it is asked for."""

    gets: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.gets[self.path] += 1
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_plain_file_server_is_a_store_too(tmp_path: Path):
    weights = WEIGHTS * 9  # more than is asked for at once
    folder = write_adapter(tmp_path / "files/sql", weights)
    handler = partial(_Plain, directory=str(tmp_path / "files"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        location = f"http://127.0.0.1:{server.server_port}/sql"
        copy = fetch(location)
        assert names_in(copy) == FILES
        assert (copy / "adapter_model.safetensors").read_bytes() == weights
        assert fetch(location) == copy  # it says when a file was changed
        (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
        check_whole(fetch(location))
        assert _Plain.gets["/sql/adapter_model.safetensors"] == 2
    finally:
        server.shutdown()
        server.server_close()


def test_an_adapter_that_changes_while_it_is_read_is_of_one_version(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
):
    original = object_store.ObjectStore.remote_file
    path = "/adapters/sql/adapter_model.safetensors"
    left = [WEIGHTS[::-1], b"newest"]

    def change_meanwhile(store: object_store.ObjectStore, file: object_store.StoredFile):
        if file.name == "adapter_config.json" and left:
            memory.pipe_file(path, left.pop(0))
            memory.pipe_file("/adapters/sql/adapter_config.json", b'{"r": 1}')
        return original(store, file)

    monkeypatch.setattr(object_store.ObjectStore, "remote_file", change_meanwhile)
    folder = fetch(MEMORY)
    assert (folder / "adapter_model.safetensors").read_bytes() == b"newest"
    assert (folder / "adapter_config.json").read_bytes() == b'{"r": 1}'


def test_shards_in_a_store_that_may_not_be_listed(web: HubServer):
    """It says "forbidden" of the one file that does not exist."""
    folder, shard = web.root / "org/sql", "adapter_model-00001-of-00001.safetensors"
    (folder / FILES[1]).rename(folder / shard)
    web.faults[WEIGHTS_PATH] = "403"
    index = json.dumps({"weight_map": {"x": shard}})
    (folder / "model.safetensors.index.json").write_text(index)
    assert names_in(fetch(url(web))) == sorted([FILES[0], FILES[2], shard])


@pytest.mark.parametrize("index", ["adapter_model.safetensors", "model.safetensors"])
def test_shards_are_found_by_their_index(memory: fsspec.AbstractFileSystem, index: str):
    shards = [f"adapter_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    memory.rm(f"/adapters/sql/{FILES[1]}")
    for shard in shards:
        memory.pipe_file(f"/adapters/sql/{shard}", shard.encode())
    assert "has no adapter_model.safetensors" in refusal(MEMORY).message
    places = {f"{shard}.lora_A": shard for shard in shards} | {"x": "../../secret", "y": 7}
    told = json.dumps({"weight_map": places}).encode()
    memory.pipe_file(f"/adapters/sql/{index}.index.json", told)
    found = fetch(MEMORY)
    assert names_in(found) == sorted([FILES[0], FILES[2], *shards])
    assert fetch(MEMORY) == found
    memory.pipe_file(f"/adapters/sql/{shards[1]}", b"new")
    assert (fetch(MEMORY) / shards[1]).read_bytes() == b"new"
    memory.rm(f"/adapters/sql/{shards[0]}")
    assert f"has no {shards[0]}" in refusal(MEMORY).message
    memory.pipe_file(f"/adapters/sql/{index}.index.json", b"x" * (9 << 20))
    assert "is larger than 8388608 bytes" in refusal(MEMORY).message

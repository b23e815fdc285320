"""Which adapters a request, and an administrator, may have; and what refusals cost."""

import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from multilora.adapters.naming import folders
from multilora.adapters.naming.catalog import AdapterCatalog
from multilora.adapters.naming.folders import AdapterFolders
from multilora.adapters.naming.source import AdapterSource
from multilora.errors import ErrorCode, RequestError
from multilora_api.admin import MOST_LISTED, Origin
from support.engine.catalogs import catalog_of, refusal


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    return folder


@pytest.fixture(name="root")
def adapters_dir(tmp_path: Path) -> Path:
    make(tmp_path / "adapters/sql")
    make(tmp_path / "adapters/org/name")
    return tmp_path / "adapters"


def test_registered_then_directory_then_on_demand(root: Path) -> None:
    everything = catalog_of("sql=/elsewhere/sql,up=org/up@v2", root, ["*", "s3://*"])
    assert everything.resolve("sql") == AdapterSource("sql", "/elsewhere/sql")
    assert everything.resolve("up") == AdapterSource("up", "org/up", "v2")
    where = str(root / "org/name")
    assert everything.resolve("org/name") == AdapterSource("org/name", where, "", Origin.DIRECTORY)
    for adapter_id, location, revision in (
        ("org/other@v1", "org/other", "v1"),
        ("org/other@refs/pr/1", "org/other", "refs/pr/1"),
        ("org/name@v1", "org/name", "v1"),
        ("gpt2", "gpt2", ""),
        ("s3://bucket/x@y", "s3://bucket/x@y", ""),
    ):
        expected = AdapterSource(adapter_id, location, revision, Origin.ON_DEMAND)
        assert everything.resolve(adapter_id) == expected


def test_refusals_say_what_would_make_it_work(root: Path) -> None:
    catalog = catalog_of("sql-v2=/x,reverse=/y,sum=/z", root)
    assert "--adapter-allow 'org/*' to let them" in refusal(catalog.resolve, "org/x@v1")
    assert "--adapter-allow 's3://b/a/*'" in refusal(catalog.resolve, "s3://b/a/x")
    message = refusal(catalog.resolve, "sql-v3")
    assert message.startswith("adapter 'sql-v3' is not known; did you mean 'sql-v2'?")
    assert "LORA_ADAPTERS" in message and "--adapters-dir" in message
    assert "did you mean" not in refusal(catalog.resolve, "zebra")
    catalog.listed()  # what a scan has seen may be meant too
    assert "did you mean 'org/name'?" in refusal(catalog.resolve, "org/nam")


def test_the_name_that_was_asked_for_is_never_proposed(root: Path) -> None:
    """A folder that has just been removed is still in the latest scan."""
    make(root / "sqls")
    catalog = catalog_of("", root)
    catalog.listed()
    (root / "sql/adapter_config.json").unlink()
    assert "did you mean 'sqls'?" in refusal(catalog.resolve, "sql")


def test_what_is_registered_later(root: Path) -> None:
    catalog = catalog_of("a=/a", root)
    source = AdapterSource("sql", "/b")
    catalog.register(source)
    assert catalog.resolve("sql") == source
    assert [source.adapter_id for source in catalog.listed().sources] == ["a", "sql", "org/name"]
    assert catalog.unregister("sql") is True
    assert catalog.unregister("sql") is False
    assert catalog.resolve("sql").origin is Origin.DIRECTORY
    assert catalog.unregister("a")
    assert "'a' has been unloaded; load it again" in refusal(catalog.resolve, "a")
    assert [source.adapter_id for source in catalog.listed().sources] == ["org/name", "sql"]
    assert all(source.is_folder for source in catalog.listed().sources)


def test_many_folders_are_listed_in_parts_without_a_look_at_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2 * MOST_LISTED + 1):
        folder = tmp_path / f"{number:05}"
        folder.mkdir()
        (folder / "adapter_config.json").touch()
    catalog = catalog_of("00003=/x", tmp_path)
    assert catalog.listed().next == f"{MOST_LISTED - 1:05}"  # it scans, which takes time

    def scan(path: str) -> Iterator[os.DirEntry[str]]:
        raise AssertionError(f"{path} is looked at again")

    monkeypatch.setattr(folders, "_QUICK_SECONDS", 0.0)  # however fast this machine is
    monkeypatch.setattr(os, "scandir", scan)
    told: list[str] = []
    after = ""
    for number in range(3):
        sources, after = catalog.listed(after)
        assert len(sources) <= MOST_LISTED + 1 and bool(after) == (number < 2)
        told += [source.adapter_id for source in sources]
    assert sorted(told) == [f"{number:05}" for number in range(2 * MOST_LISTED + 1)]


def test_the_place_an_administrator_leaves_out_is_what_requests_get(root: Path) -> None:
    catalog = catalog_of("up=/up,hub=org/x@v1", root, ["other/*"])
    for adapter_id in ("up", "hub", "sql", "other/y@v2"):
        assert catalog.source(adapter_id, "", "") == catalog.resolve(adapter_id)
    catalog.unregister("up")
    assert catalog.source("up", "", "") == AdapterSource("up", "/up")  # unloaded, loaded again
    assert catalog.source("hub", "", "v9") == AdapterSource("hub", "org/x", "v9")
    refusal(catalog.source, "org/z", "", "")
    refusal(catalog.source, "../x", "", "", code=ErrorCode.INVALID_ARG)


def test_the_places_an_administrator_may_name(root: Path) -> None:
    catalog = catalog_of("hub=org/x@v1,url=s3://b/c", root, ["other/*", "gs://b/*"])
    for location, revision, expected in (
        ("other/y", "", ("other/y", "")),
        ("other/y@v1", "", ("other/y", "v1")),
        ("other/y", "v1", ("other/y", "v1")),
        ("org/x", "v2", ("org/x", "v2")),  # registered, so a known place
        ("org/x@v3", "", ("org/x", "v3")),
        ("hub", "", ("org/x", "v1")),
        ("s3://b/c", "", ("s3://b/c", "")),
        ("gs://b/d", "", ("gs://b/d", "")),
        ("sql", "", (str(root / "sql"), "")),
    ):
        assert catalog.source("new", location, revision) == AdapterSource("new", *expected)
    message = refusal(catalog.source, "new", "evil/y", "")
    assert message.startswith("source: adapter 'evil/y'") and "--adapter-allow 'evil/*'" in message
    refusal(catalog.source, "new", "s3://b/d", "")
    for arguments in (
        ("../x", "other/y", ""), ("", "other/y", ""), ("new", "other/../y", ""),
        ("new", "other/y", "../v"), ("new", "sql", "v1"), ("new", "gs://b/d", "v1"),
    ):  # fmt: skip
        refusal(catalog.source, *arguments, code=ErrorCode.INVALID_ARG)


def test_the_folders_an_administrator_may_name(root: Path) -> None:
    models = root.parent / "models"
    make(models / "x")
    (root.parent / "link").symlink_to(models)
    (models / "out").symlink_to("/etc")
    (root / "out").symlink_to(models)
    named = make(root.parent / "named")
    catalog = catalog_of(f"up={named}", root, [f"{root.parent}/link/*"])
    for location, expected in (
        (f"{models}/x", models / "x"),
        (f"{root.parent}/link/x", models / "x"),
        (f"{models}/y/../x", models / "x"),
        (f"{root}/sql", root / "sql"),
        (f"{named}/", named),
    ):
        assert catalog.source("new", location, "") == AdapterSource("new", str(expected))
    for location in (
        "/etc", f"{models}/out", f"{models}/../other", f"{root}/../other", f"{models}", "~root",
        f"{root}-too/x", "../x", f"{root.parent}/link2/x", f"{named}/x", "/" + "x" * 10**6,
    ):  # fmt: skip
        message = refusal(catalog.source, "new", location, "", code=ErrorCode.INVALID_ARG)
        assert "must be below --adapters-dir, be in LORA_ADAPTERS or match" in message
    for odd in ("\0", "\ud800"):
        refusal(catalog.source, "new", f"{models}/{odd}", "", code=ErrorCode.INVALID_ARG)
    refusal(catalog_of().source, "new", f"{models}/x", "", code=ErrorCode.INVALID_ARG)
    assert (
        catalog_of(allow="/*").source("new", str(models / "out"), "").location == "/etc"
    )  # as asked


def test_ten_thousand_requests_for_missing_adapters_are_cheap_and_forgotten(root: Path) -> None:
    registered = [AdapterSource(f"adapter-{n:05}", f"/x/{n}") for n in range(5000)]
    catalog = AdapterCatalog(registered, AdapterFolders(root), ["org/*"])
    asked = [f"adapter-{n:05}x" for n in range(5000)] + [f"no/such-{n}" for n in range(5000)]
    refusal(catalog.resolve, asked[0])
    start = time.process_time()
    for adapter_id in asked:
        with pytest.raises(RequestError):
            catalog.resolve(adapter_id)
    spent = time.process_time() - start
    assert spent < 10, "1 ms each on a slow and busy machine"
    tracemalloc.start()
    try:
        for adapter_id in asked[::20]:
            with pytest.raises(RequestError):
                catalog.resolve(adapter_id)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000


@pytest.fixture(name="eager_threads")
def threads_that_switch_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("eager_threads")
def test_threads_share_a_catalog() -> None:
    catalog = catalog_of("stays=/x")
    done = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                assert catalog.resolve("stays").location == "/x"
                assert catalog.listed().sources[0].adapter_id == "stays"
                catalog.source("new", "/x", "")
        except BaseException as error:
            failures.append(error)

    together = threading.Barrier(3)

    def write(name: str) -> None:
        together.wait()
        for number in range(300):
            catalog.register(AdapterSource(f"{name}-{number}", "/y"))
        for number in range(0, 300, 2):
            assert catalog.unregister(f"{name}-{number}")

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not failures
    assert len(catalog.listed().sources) == 1 + 3 * 150

"""The adapters directory: what is found below it, and that nothing outside of it ever is."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from multilora.adapters.naming.folders import AdapterFolders
from multilora.adapters.naming.source import AdapterSource
from multilora.errors import ErrorCode, RequestError, StartupError
from multilora_api.admin import Origin
from support.engine.files import unprivileged


def make(folder: Path, weights: str = "w") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(weights)
    return folder


@pytest.fixture(name="root")
def adapters_dir(tmp_path: Path) -> Path:
    root = tmp_path / "adapters"
    make(root / "sql")
    make(root / "team/eu/de")
    return root


def refused(folders: AdapterFolders, name: str) -> str:
    with pytest.raises(RequestError) as caught:
        folders.find(name)
    assert caught.value.code is ErrorCode.INVALID_ARG
    return caught.value.message


def names(folders: AdapterFolders) -> list[str]:
    """By a scan; each of them can be found too."""
    found = sorted(folders.scan())
    for name in found:
        source = folders.find(name)
        assert source is not None and source.adapter_id == name and source.is_folder
        assert (Path(source.location) / "adapter_config.json").is_file()
    assert folders.known == tuple(found)
    return found


def test_folders_are_found_by_their_relative_names(root: Path) -> None:
    folders = AdapterFolders(root)
    assert names(folders) == ["sql", "team/eu/de"]
    where = str(root / "team/eu/de")
    assert folders.find("team/eu/de") == AdapterSource("team/eu/de", where, "", Origin.DIRECTORY)
    for missing in ("", "team", "team/eu", "eu/de", "sqll", "sql/adapter_config.json", "SQL"):
        if missing:
            assert folders.find(missing) is None


def test_a_relative_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    source = AdapterFolders(Path("adapters")).find("sql")
    assert source is not None and source.location == str(root / "sql")


def test_a_folder_is_found_as_soon_as_it_is_there_and_not_longer(root: Path) -> None:
    folders = AdapterFolders(root)
    make(root / "new one/ünï")
    assert folders.find("new one/ünï")
    shutil.rmtree(root / "new one")
    assert folders.find("new one/ünï") is None


def test_what_is_no_adapter_of_its_own(root: Path) -> None:
    make(root / "sql/checkpoint-100")
    make(root / ".hidden/x")
    make(root / "team/.new")
    make(root / "1/2/3/4/5/6/7/8")
    make(root / "1/2/3/4/5/6/7/nine/9")
    (root / "empty").mkdir()
    (root / "weights only").mkdir()
    (root / "weights only/adapter_model.safetensors").write_text("w")
    (root / "fifo").mkdir()
    os.mkfifo(root / "fifo/adapter_config.json")
    (root / "folder/adapter_config.json").mkdir(parents=True)
    make(root / "odd\\name")
    make(root / "odd\nname")
    folders = AdapterFolders(root)
    assert names(folders) == ["1/2/3/4/5/6/7/8", "sql", "team/eu/de"]
    for name in (
        "sql/checkpoint-100", ".hidden/x", "team/.new", "1/2/3/4/5/6/7/nine/9", "empty",
        "weights only", "fifo", "folder", "x" * 256, "a/" * 100 + "b",
    ):  # fmt: skip
        assert folders.find(name) is None


@pytest.mark.parametrize(
    "name",
    ["../adapters/sql", "team/../sql", "sql/.", "/etc", "~", "sql\0", "x" * 300, "sql/", "\ud800"],
)
def test_path_traversal(root: Path, name: str) -> None:
    make(root.parent / "etc")
    refused(AdapterFolders(root), name)
    refused(AdapterFolders(root), str(root / "sql"))


def test_a_symlink_out_of_the_root_is_refused(root: Path) -> None:
    outside = make(root.parent / "outside/x")
    (root / "folder").symlink_to(outside)
    (root / "parent").symlink_to(outside.parent)
    (root / "relative").symlink_to("../outside/x")
    (root / "chain").symlink_to("folder")
    (root / "sibling").symlink_to(make(root.parent / "adapters-of-others"))  # same beginning
    for name in ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"):
        folder = make(root / f"file {name}")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside / name)
    inner = make(root / "file inner") / "additional_chat_templates"
    inner.mkdir()
    (inner / "tool_use.jinja").symlink_to(outside / "adapter_config.json")
    inner = make(root / "folder inner") / "additional_chat_templates"
    inner.symlink_to(outside)
    folders = AdapterFolders(root)
    assert names(folders) == ["sql", "team/eu/de"]
    for name in (
        "file inner", "folder inner", "folder", "parent/x", "relative", "chain", "sibling",
        "file adapter_config.json", "file adapter_model.safetensors", "file chat_template.jinja",
    ):  # fmt: skip
        assert f"adapter {name!r}: a symlink leads out of the adapters" in refused(folders, name)


def test_symlinks_within_the_root_and_loops(root: Path) -> None:
    (root / "alias").symlink_to(root / "sql")
    (root / "group").symlink_to("team")
    (root / "team/loop").symlink_to(root)
    (root / "self").symlink_to("self")
    (root / "nowhere").symlink_to("gone")
    folder = make(root / "by-link")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").symlink_to("../sql/adapter_model.safetensors")
    found = names(AdapterFolders(root))
    assert found == ["alias", "by-link", "group/eu/de", "sql", "team/eu/de"]


def test_many_loops_end_soon(root: Path) -> None:
    for name in "abcdefgh":
        (root / name).mkdir()
        for other in "abcdefgh":
            (root / name / other).symlink_to(root)
    assert names(AdapterFolders(root)) == ["sql", "team/eu/de"]


def test_a_root_that_is_a_symlink_may_be_exchanged(root: Path) -> None:
    """As git-sync and Kubernetes do: a new tree, then one rename of the symlink to it."""
    new = root.parent / "..2026_x"
    make(new / "fresh")
    (root.parent / "current").symlink_to(root)
    folders = AdapterFolders(root.parent / "current")
    assert names(folders) == ["sql", "team/eu/de"]
    (root.parent / "next").symlink_to(new)
    os.rename(root.parent / "next", root.parent / "current")
    assert names(folders) == ["fresh"]


def test_a_kubernetes_volume(root: Path) -> None:
    make(root / "..2026_10/py")
    (root / "..data").symlink_to("..2026_10")
    (root / "py").symlink_to("..data/py")
    assert names(AdapterFolders(root)) == ["py", "sql", "team/eu/de"]


def test_an_adapter_is_known_by_its_new_name(root: Path) -> None:
    folders = AdapterFolders(root)
    folders.scan()
    (root / "sql").rename(root / "new")
    folders.scan()
    assert folders.known == ("new", "team/eu/de")


INNER = "additional_chat_templates/tool_use.jinja"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "chat_template.jinja", INNER])
def test_a_signature_changes_with_each_file(root: Path, name: str) -> None:
    folders = AdapterFolders(root)
    before = folders.scan()
    assert folders.scan() == before
    path = root / "sql" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("1")
    status = path.stat()
    written = folders.scan()
    assert written["sql"] != before["sql"] and written["team/eu/de"] == before["team/eu/de"]
    time.sleep(0.01)
    path.write_text("2")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as `cp -p` and rsync do
    assert folders.scan()["sql"] != written["sql"]


def test_a_root_that_is_none(root: Path) -> None:
    for path in (root / "nowhere", root / "sql/adapter_config.json"):
        with pytest.raises(StartupError, match=r"adapters_dir .* is no folder; check --adapters"):
            AdapterFolders(path)
    with pytest.raises(StartupError, match="is itself an adapter; give --adapters-dir the folder"):
        AdapterFolders(root / "sql")
    folders = AdapterFolders(root)
    shutil.rmtree(root)
    assert folders.find("sql") is None
    with pytest.raises(OSError):
        folders.scan()


def test_folders_that_come_and_go_during_a_scan(root: Path) -> None:
    for number in range(100):
        make(root / f"many/{number:03}")
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            make(root / "passing/x/y")
            shutil.rmtree(root / "passing")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        folders = AdapterFolders(root)
        for _ in range(60):
            assert set(folders.scan()) - {"passing/x/y"} >= {"sql", "team/eu/de", "many/099"}
            folders.find("passing/x/y")
    finally:
        done.set()
        thread.join()


def test_a_folder_without_leave_to_list_it(root: Path) -> None:
    (root / "team").chmod(0)
    try:
        with unprivileged(root):
            folders = AdapterFolders(root)
            assert list(folders.scan()) == ["sql"]
            assert folders.find("team/eu/de") is None
    finally:
        (root / "team").chmod(0o755)

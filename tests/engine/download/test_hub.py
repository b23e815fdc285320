"""Adapters from a hub that works: what arrives, what is cached, who may read it."""

import errno
import logging
import os
import re
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants, scan_cache_dir, snapshot_download

from multilora.adapters.naming.source import AdapterSource
from multilora.download import hub_cache, partial_file
from multilora.download.folder import adapter_folder
from multilora.download.transfer import DownloadLimits
from multilora.errors import ErrorCode, RequestError
from support.engine.downloads import WEIGHTS, names_in, write_adapter
from support.fake.hub import HubServer

FILES = ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"]
WEIGHTS_PATH = "org/sql/adapter_model.safetensors"


def fetch(
    revision: str = "", location: str = "org/sql", limits: DownloadLimits | None = None
) -> Path:
    return adapter_folder(
        AdapterSource("sql", location, revision), limits or DownloadLimits(1 << 30, 30)
    )


def refusal(revision: str = "", location: str = "org/sql") -> RequestError:
    with pytest.raises(RequestError) as caught:
        fetch(revision, location)
    return caught.value


def test_a_template_in_a_folder_comes_too(hub: HubServer):
    template = "additional_chat_templates/tool_use.jinja"
    (hub.root / "org/sql" / template).parent.mkdir()
    (hub.root / "org/sql" / template).write_text("{{ tools }}")
    assert (fetch() / template).read_text() == "{{ tools }}"


def test_the_cache_is_one_that_huggingface_hub_reads(hub: HubServer, tmp_path: Path):
    folder = fetch()
    assert names_in(folder) == FILES
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS
    requests = hub.asked
    again = snapshot_download(
        "org/sql", cache_dir=tmp_path / "cache", local_files_only=True, allow_patterns=FILES
    )
    assert Path(again).resolve() == folder.resolve() and hub.asked == requests
    (repo,) = scan_cache_dir(tmp_path / "cache").repos
    (revision,) = repo.revisions
    assert revision.commit_hash == folder.name and revision.refs == {"main"}
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_what_huggingface_hub_has_brought_is_not_fetched_again(hub: HubServer, tmp_path: Path):
    snapshot_download("org/sql", cache_dir=tmp_path / "cache", endpoint=hub.url)
    before = hub.sent.copy()
    assert fetch().name and hub.sent == before


def test_a_branch_that_moves_is_fetched_anew_by_the_next_call_only(hub: HubServer, tmp_path: Path):
    first = fetch()
    assert fetch() == first and hub.hits[WEIGHTS_PATH] == 1
    write_adapter(tmp_path / "hub/org/sql", weights=WEIGHTS[::-1])
    assert (first / "adapter_model.safetensors").read_bytes() == WEIGHTS
    second = fetch()
    assert second != first
    assert (second / "adapter_model.safetensors").read_bytes() == WEIGHTS[::-1]
    assert (first / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert hub.hits["org/sql/adapter_config.json"] == 1  # the same content is here already
    before = hub.asked
    assert fetch(revision=first.name) == first and hub.asked == before  # a commit never changes


def test_offline_serves_what_is_cached(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    folder = fetch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = hub.asked
    assert fetch() == folder == fetch(revision=folder.name) and hub.asked == before
    error = refusal(revision="other")
    assert error.code is ErrorCode.UNAVAILABLE and "HF_HUB_OFFLINE" in error.message


@pytest.mark.parametrize("fault", ["500", "429", "slow"])
def test_a_hub_out_of_order_leaves_the_cached_copy(
    hub: HubServer, caplog: pytest.LogCaptureFixture, fault: str
):
    folder = fetch()
    hub.faults["api/models/org/sql"] = fault
    assert fetch() == folder
    assert "serving the copy in the Hub cache" in caplog.text
    hub.faults["api/models/org/sql"] = "404"
    assert refusal().code is ErrorCode.NOT_FOUND  # gone is not out of order


def test_private_repositories_need_the_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    hub.token = "secret"
    error = refusal()
    assert error.code is ErrorCode.NOT_FOUND and "HF_TOKEN" in error.message
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert refusal().code is ErrorCode.NOT_FOUND
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert names_in(fetch()) == FILES


def test_large_files_come_from_another_host_without_the_token(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
):
    hub.token, hub.cdn = "secret", True
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.fail(WEIGHTS_PATH, "broken", times=1)
    assert (fetch() / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert hub.sent[WEIGHTS_PATH] == len(WEIGHTS)  # ranges are passed on
    assert not hub.leaked


def test_a_cache_that_may_only_be_read_serves(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    folder = fetch()

    def read_only(path: Path, content: str) -> None:
        with partial_file.on_disk(path.parent):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(hub_cache, "write_atomically", read_only)
    (folder.parents[1] / "refs/main").unlink()
    folder.parents[2].joinpath(".locks").rename(folder.parents[2] / "no-locks")
    assert fetch() == folder and not folder.parents[2].joinpath(".locks").exists()


def test_pickles_stay_where_they_are(hub: HubServer, tmp_path: Path):
    folder = tmp_path / "hub/org/sql"
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    error = refusal()
    assert error.code is ErrorCode.INVALID_ARG
    assert "`multilora adapters convert FOLDER`" in error.message
    assert not hub.sent
    (folder / "adapter_model.bin").unlink()
    assert "has no adapter_model.safetensors" in refusal().message
    (folder / "adapter_config.json").unlink()
    assert "no PEFT adapter" in refusal().message


@pytest.mark.parametrize("revision", ["../../x", "a..b", "/etc", "a/../../b", "-x", "a b", "a\0b"])
def test_odd_revisions_never_reach_the_disk_or_the_hub(hub: HubServer, revision: str):
    assert refusal(revision).code is ErrorCode.NOT_FOUND
    assert not hub.asked


@pytest.mark.parametrize("location", ["org/../sql", "a/b/c", "org/sql ", "org/", "o--g/x", "..%2f"])
def test_odd_ids_are_not_found(hub: HubServer, location: str):
    assert refusal(location=location).code is ErrorCode.NOT_FOUND
    assert not hub.asked


def test_many_threads_bring_it_once(hub: HubServer):
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(fetch())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 8 and len(set(folders)) == 1
    assert hub.hits[WEIGHTS_PATH] == 1
    assert (folders[0] / "adapter_model.safetensors").read_bytes() == WEIGHTS


def test_progress_is_lines_of_the_log(
    hub: HubServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    caplog.set_level(logging.INFO, "multilora.download")
    fetch()
    lines = [record.message for record in caplog.records if record.name == "multilora.download"]
    assert lines[0] == "adapter sql: [....................]   0 %  0.00/1.05 MB"
    last = r"adapter sql: \[#{20}\] 100 %  1\.05/1\.05 MB in \d+\.\d s"
    assert re.fullmatch(last, lines[-1])
    caplog.clear()
    fetch()
    assert not caplog.records  # nothing to bring, nothing to say
    assert capfd.readouterr().err == ""


def test_shards_come_all_or_none(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "hub/org/sql"
    shards = [f"adapter_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (folder / "adapter_model.safetensors").unlink()
    for shard in shards:
        (folder / shard).write_text(shard)
    (folder / "model.safetensors.index.json").write_text("{}")
    hub.fail(f"org/sql/{shards[1]}", "404", times=1)
    assert refusal().code is ErrorCode.NOT_FOUND
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refusal().code is ErrorCode.UNAVAILABLE  # one of the two does not do
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = fetch()
    assert names_in(found) == sorted([FILES[0], FILES[2], *shards])
    before = hub.asked
    assert fetch(revision=found.name) == found and hub.asked == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch() == found
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (folder / shards[0]).unlink()
    assert f"has no {shards[0]}" in refusal().message

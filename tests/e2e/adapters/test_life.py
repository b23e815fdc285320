"""The Triton model `adapters` over /generate, gRPC and the command line: what is loaded, what it
occupies, and that nobody waits for somebody else's download."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from launcher.triton.server import TritonServer
from multilora_client import AdapterInfo, InvalidRequest, MultiLoRAClient, NotFound, Unavailable
from support.e2e.adapters import administer, command, infer, settled, used
from support.e2e.triton import DEMO, GrpcStream, demo_server, eventually, generate
from support.fake.hub import HubServer

TEXT = "hello world"
SQL_BYTES = 500_000  # at least, of every adapter of the demo
SLOW_FILE = "acme/slow/adapter_model.safetensors"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(DEMO / "adapters/rot13", root / "acme/slow")
    with HubServer(root) as hub:
        yield hub


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder from which adapters may be loaded, though none is known yet."""
    shelf = tmp_path_factory.mktemp("shelf")
    shutil.copytree(DEMO / "adapters/reverse", shelf / "turned")
    return shelf


@pytest.fixture(scope="module")
def server(
    hub: HubServer, shelf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    home = tmp_path_factory.mktemp("hf")
    settings = {
        "ADAPTER_ALLOW": f"acme/*,{shelf}/*",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),  # else that of the environment
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    with demo_server(**settings) as server:
        yield server


@pytest.fixture
def client(server: TritonServer) -> Iterator[MultiLoRAClient]:
    with MultiLoRAClient(server.grpc_address, timeout=60) as client:
        yield client


@pytest.fixture
def turned(client: MultiLoRAClient, shelf: Path) -> Iterator[AdapterInfo]:
    """An adapter that an administrator has loaded under a name of their own."""
    yield client.adapters.load("turned", str(shelf / "turned"))
    with contextlib.suppress(NotFound):  # the test has done so
        client.adapters.unload("turned", cancel=True)


def test_list_by_every_way(server: TritonServer, client: MultiLoRAClient) -> None:
    demo = sorted(path.name for path in (DEMO / "adapters").iterdir())
    listed = administer(server, action="list")
    assert sorted(entry["id"] for entry in listed["adapters"]) == demo
    assert sorted(entry["id"] for entry in infer(server, action="list")["adapters"]) == demo
    assert {info.id: info.tier for info in client.adapters.list()} == {
        entry["id"]: entry["tier"] for entry in listed["adapters"]
    }
    assert client.adapters.memory().device_pages == listed["memory"]["device_pages"]
    code, output, errors = command(server, "list")
    assert (code, errors) == (0, "")
    header, *rows, _, footer = output.splitlines()
    assert header.startswith("ID ")
    assert sorted(row.split()[0] for row in rows) == demo
    assert footer.startswith(f"{len(demo)} adapters; device: ")
    code, output, _ = command(server, "list", "--json", "--filter", "sql")
    assert [entry["id"] for entry in json.loads(output)["adapters"]] == ["sql"]


def test_what_is_known_of_an_adapter(server: TritonServer, client: MultiLoRAClient) -> None:
    before = client.adapters.info("sql").requests
    generate(server, TEXT, "sql")
    info = client.adapters.info("sql")
    again = AdapterInfo.from_json(infer(server, action="info", adapter_id="sql"))
    assert again.last_used == pytest.approx(info.last_used, abs=0.1)  # by two clocks, each time
    assert replace(again, last_used=info.last_used) == info
    assert (info.tier, info.state, info.error) == ("device", "ready", None)
    assert info.requests == before + 1 and (info.running, info.waiting) == (0, 0)
    assert info.rank and info.pages and info.digest and info.modules
    assert (info.bytes or 0) >= SQL_BYTES
    assert abs(time.time() - (info.last_used or 0)) < 60
    code, output, _ = command(server, "info", "sql")
    assert code == 0 and info.digest in output


def test_a_new_name_is_loaded_and_answers(
    server: TritonServer, client: MultiLoRAClient, turned: AdapterInfo
) -> None:
    assert (turned.id, turned.state) == ("turned", "ready")
    assert turned.tier in ("device", "host")
    assert generate(server, TEXT, "turned") == "world hello"
    assert client.adapters.info("turned").tier == "device"
    assert "turned" in {info.id for info in client.adapters.list()}


def test_unload_gives_pages_and_host_bytes_back(
    server: TritonServer, client: MultiLoRAClient, shelf: Path
) -> None:
    before = settled(server)
    loaded = client.adapters.load("passing", str(shelf / "turned"))
    assert generate(server, TEXT, "passing") == "world hello"
    assert eventually(lambda: used(server)[0] - before[0], loaded.pages or 0) == loaded.pages
    assert used(server)[1] - before[1] >= SQL_BYTES
    code, output, errors = command(server, "unload", "passing")
    assert (code, errors) == (0, "")
    assert output.startswith(f"passing: unloaded, freed {loaded.pages} device page")
    assert eventually(lambda: used(server) == before, True), (used(server), before)
    with pytest.raises(NotFound):
        client.generate(TEXT, adapter_id="passing")


def test_unload_tells_what_it_freed(client: MultiLoRAClient, turned: AdapterInfo) -> None:
    client.generate(TEXT, adapter_id="turned")
    before = client.adapters.memory()
    freed = client.adapters.unload("turned")
    after = client.adapters.memory()
    assert before.device_pages_used - after.device_pages_used == freed.freed_pages == turned.pages
    assert before.host_bytes_used - after.host_bytes_used == freed.freed_bytes >= SQL_BYTES


def test_unload_waits_for_what_runs(
    server: TritonServer, client: MultiLoRAClient, turned: AdapterInfo
) -> None:
    running = {"text_input": TEXT, "adapter_id": "turned", "max_tokens": 400, "stream": True}
    with (
        GrpcStream(server, "multilora", {**running, "ignore_eos": True}) as stream,
        ThreadPoolExecutor(1) as thread,
    ):
        stream.take()
        assert client.adapters.info("turned").running == 1
        unloading = thread.submit(client.adapters.unload, "turned")
        stream.text()
        assert unloading.result(60).freed_pages == turned.pages


def test_unload_with_cancel_ends_what_runs(
    server: TritonServer, client: MultiLoRAClient, turned: AdapterInfo
) -> None:
    running = {"text_input": TEXT, "adapter_id": "turned", "max_tokens": 900, "stream": True}
    with GrpcStream(server, "multilora", {**running, "ignore_eos": True}) as stream:
        stream.take()
        assert client.adapters.unload("turned", cancel=True).freed_pages == turned.pages
        with pytest.raises(InferenceServerException, match="unloaded"):
            stream.text()


def test_unload_that_runs_out_of_time(
    server: TritonServer, client: MultiLoRAClient, turned: AdapterInfo
) -> None:
    running = {"text_input": TEXT, "adapter_id": "turned", "max_tokens": 900, "stream": True}
    with GrpcStream(server, "multilora", {**running, "ignore_eos": True}) as stream:
        stream.take()
        with pytest.raises(Unavailable):
            client.adapters.unload("turned", timeout=0.1)
        stream.cancel()


def test_pin_and_unpin(server: TritonServer, client: MultiLoRAClient) -> None:
    pinned = client.adapters.pin("upper")
    assert pinned.pinned and pinned.tier in ("device", "host")
    assert client.adapters.info("upper").pinned
    code, output, _ = command(server, "unpin", "upper")
    assert code == 0 and output.startswith("upper: no longer pinned (tier ")
    assert not client.adapters.info("upper").pinned


def test_nobody_waits_for_a_slow_load(
    server: TritonServer, client: MultiLoRAClient, hub: HubServer
) -> None:
    """A hub that is silent for 2 s: everything else goes on, whoever loads it."""
    hub.fail(SLOW_FILE, "slow", times=1)
    with ThreadPoolExecutor(40) as threads:
        loads = [threads.submit(client.adapters.load, "acme/slow") for _ in range(40)]
        assert eventually(lambda: client.adapters.info("acme/slow").state == "loading", True)
        start = time.monotonic()
        assert "acme/slow" in {entry["id"] for entry in infer(server, action="list")["adapters"]}
        assert generate(server, TEXT, "upper") == TEXT.upper()
        assert time.monotonic() - start < 1
        assert not any(load.done() for load in loads)
        assert {load.result(60).state for load in loads} == {"ready"}
    assert generate(server, TEXT, "acme/slow") == "uryyb jbeyq"
    assert hub.hits[SLOW_FILE] == 1, "one download serves all"
    client.adapters.unload("acme/slow")


def test_an_administrator_who_leaves_does_not_stop_a_load(
    client: MultiLoRAClient, hub: HubServer, server: TritonServer
) -> None:
    shutil.copytree(hub.root / "acme/slow", hub.root / "acme/late")
    hub.fail("acme/late/adapter_model.safetensors", "slow", times=1)
    with pytest.raises(Unavailable):
        client.adapters.load("late", "acme/late", timeout=0.2)
    assert eventually(lambda: client.adapters.info("late").state == "ready", True)
    assert generate(server, TEXT, "late") == "uryyb jbeyq"
    client.adapters.unload("late")


def test_switched_off() -> None:
    """Looking is allowed, changing is not."""
    with demo_server(ADAPTER_ADMIN="off") as server:
        with MultiLoRAClient(server.grpc_address, timeout=60) as client:
            assert {"sql", "upper"} <= {info.id for info in client.adapters.list()}
            assert client.adapters.info("sql").id == "sql"
            for action in ("load", "unload", "pin", "unpin"):
                with pytest.raises(InvalidRequest, match="--adapter-admin on"):
                    client.adapters.ask(action, adapter_id="sql")
            assert client.generate(TEXT, adapter_id="upper").text == TEXT.upper()[:16]
        code, _, errors = command(server, "unload", "sql")
        assert code == 1 and "--adapter-admin on" in errors


def test_a_request_waits_for_its_adapter_as_long_as_it_says(
    client: MultiLoRAClient, hub: HubServer
) -> None:
    shutil.copytree(hub.root / "acme/slow", hub.root / "acme/patient")
    hub.fail("acme/patient/adapter_model.safetensors", "slow", times=1)
    with pytest.raises(Unavailable, match="adapter_timeout"):
        client.generate(TEXT, adapter_id="acme/patient", adapter_timeout=0.3)
    answer = client.generate(TEXT, adapter_id="acme/patient", adapter_timeout=30)
    assert answer.text == "uryyb jbeyq"
    client.adapters.unload("acme/patient")

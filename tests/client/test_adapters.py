"""MultiLoRAClient.adapters and its asyncio counterpart against a real gRPC server."""

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from multilora_client import (
    AdapterInfo,
    AdapterMemory,
    AsyncMultiLoRAClient,
    Cancelled,
    InvalidRequest,
    MultiLoRAClient,
    MultiLoRAError,
    NotFound,
    TimedOut,
    Unavailable,
    Unloaded,
)
from support.fake.adapters import ENTRIES, MEMORY, FakeAdapters


@pytest.fixture
def server() -> Iterator[FakeAdapters]:
    server = FakeAdapters()
    yield server
    server.close()


@pytest.fixture
def client(server: FakeAdapters) -> Iterator[MultiLoRAClient]:
    with MultiLoRAClient(server.url) as client:
        yield client


def inputs(server: FakeAdapters) -> list[dict[str, Any]]:
    return [inputs for _, _, inputs in server.received]


def test_list_and_memory(client: MultiLoRAClient) -> None:
    infos = client.adapters.list()
    told = [{**dataclasses.asdict(info), "colour": "blue"} for info in infos]
    assert json.loads(json.dumps(told)) == ENTRIES
    assert client.adapters.memory() == AdapterMemory(**MEMORY)


def test_a_long_list_comes_in_parts() -> None:
    server = FakeAdapters(on_disk=2500)
    try:
        with MultiLoRAClient(server.url) as client:
            told = [info.id for info in client.adapters.list()]
        disk = [f"disk/{number:05}" for number in range(2500)]
        assert sorted(told) == sorted([*(entry["id"] for entry in ENTRIES), *disk])
        assert [asked.get("after") for asked in inputs(server)] == [
            None, ["disk/00999"], ["disk/01999"],
        ]  # fmt: skip
    finally:
        server.close()


def test_infos_cannot_be_changed(client: MultiLoRAClient) -> None:
    info = client.adapters.info("sql")
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.pinned = True  # pyright: ignore[reportAttributeAccessIssue]
    assert len({info, client.adapters.info("sql")}) == 1


def test_only_what_was_given_travels(server: FakeAdapters, client: MultiLoRAClient) -> None:
    adapters = client.adapters
    assert adapters.info("sql").source == "/adapters"
    assert adapters.load("sql", "org/name", "v2", timeout=2.5).source == "org/name"
    assert adapters.load("sql", adapter_token="hf_x").id == "sql"
    assert adapters.unload("sql") == Unloaded("sql", 2, 1234567)
    adapters.unload("sql", cancel=True, timeout=1)
    assert adapters.pin("sql").pinned
    assert not adapters.unpin("sql").pinned
    sql = {"adapter_id": ["sql"]}
    assert inputs(server) == [
        {"action": ["info"], **sql},
        {"action": ["load"], **sql, "source": ["org/name"], "revision": ["v2"], "timeout": [2.5]},
        {"action": ["load"], **sql, "adapter_token": ["hf_x"]},
        {"action": ["unload"], **sql},
        {"action": ["unload"], **sql, "cancel": [True], "timeout": [1.0]},
        {"action": ["pin"], **sql},
        {"action": ["unpin"], **sql},
    ]


def test_the_admin_key_goes_with_every_action(server: FakeAdapters) -> None:
    with MultiLoRAClient(server.url, admin_key="key") as client:
        client.adapters.pin("sql")
    assert inputs(server) == [{"action": ["pin"], "adapter_id": ["sql"], "admin_key": ["key"]}]


def test_a_merge_is_a_recipe(server: FakeAdapters, client: MultiLoRAClient) -> None:
    client.adapters.merge({"sql": 1, "org/json": 0.5})
    client.adapters.merge({"a": 1.0}, "ties", 0.5, "frequency", adapter_token="hf_x", timeout=3)
    plain, ties = inputs(server)
    assert json.loads(plain.pop("merge")[0]) == {"ids": ["sql", "org/json"], "weights": [1.0, 0.5]}
    assert plain == {"action": ["merge"]}
    assert json.loads(ties.pop("merge")[0]) == {
        "ids": ["a"], "weights": [1.0], "merge_strategy": "ties", "density": 0.5,
        "majority_sign_method": "frequency",
    }  # fmt: skip
    assert ties == {"action": ["merge"], "adapter_token": ["hf_x"], "timeout": [3.0]}


def test_the_server_hears_of_the_clients_timeout(server: FakeAdapters) -> None:
    with MultiLoRAClient(server.url, timeout=4) as client:
        client.adapters.load("sql")
        client.adapters.load("sql", timeout=8)
    assert [each["timeout"] for each in inputs(server)] == [[4.0], [8.0]]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARG", InvalidRequest),
        ("NOT_FOUND", NotFound),
        ("UNAVAILABLE", Unavailable),
        ("CANCELLED", Cancelled),
        ("INTERNAL", MultiLoRAError),
    ],
)
def test_an_error_keeps_its_code_and_message(
    client: MultiLoRAClient, code: str, kind: type[MultiLoRAError]
) -> None:
    with pytest.raises(kind) as caught:
        client.adapters.load(code)
    assert type(caught.value) is kind
    assert caught.value.message == f"no luck:\n{code}"
    assert caught.value.code == code.replace("INVALID_ARG", "INVALID_ARGUMENT")
    assert client.adapters.info("sql").id == "sql", "the client goes on"


def test_a_server_without_the_triton_model(server: FakeAdapters) -> None:
    with (
        MultiLoRAClient(server.url, admin="nothing") as client,
        pytest.raises(NotFound, match="unknown model: 'nothing'"),
    ):
        client.adapters.list()


def test_a_server_that_is_silent(server: FakeAdapters) -> None:
    with (
        MultiLoRAClient(server.url) as client,
        pytest.raises(TimedOut, match="what the server has begun goes on"),
    ):
        client.adapters.load("silent", timeout=-1.5)  # the client allows 2 s more


def test_no_server_is_said_clearly(server: FakeAdapters) -> None:
    server.close()
    with (
        MultiLoRAClient(server.url) as client,
        pytest.raises(Unavailable, match=f"no Triton server answers on gRPC at {server.url}"),
    ):
        client.adapters.list()


def test_an_answer_that_is_no_json(client: MultiLoRAClient) -> None:
    with pytest.raises(MultiLoRAError, match="cannot read the server's answer") as caught:
        client.adapters.load("garbled")
    assert caught.value.code == "INTERNAL"


def test_an_answer_that_lacks_something() -> None:
    entry = {name: value for name, value in ENTRIES[0].items() if name != "tier"}
    with pytest.raises(MultiLoRAError, match=r"missing .* 'tier'"):
        AdapterInfo.from_json(entry)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"adapter_id": 5}, "adapter_id must be text; got"),
        ({"timeout": "soon"}, "timeout must be a value of type FP32; got 'soon'"),
        ({"color": "blue"}, "unknown input color; there are action, adapter_id, after"),
    ],
)
def test_what_cannot_travel_is_named(
    server: FakeAdapters, client: MultiLoRAClient, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        client.adapters.ask("load", **wrong)
    assert not server.received


def test_async(server: FakeAdapters) -> None:
    async def run() -> None:
        async with AsyncMultiLoRAClient(server.url) as client:
            adapters = client.adapters
            infos, memory = await asyncio.gather(adapters.list(), adapters.memory())
            assert [info.id for info in infos] == [entry["id"] for entry in ENTRIES]
            assert memory == AdapterMemory(**MEMORY)
            assert (await adapters.info("sql")).rank == 16
            loaded = await adapters.load("sql", "org/name", timeout=3, adapter_token="hf_x")
            assert loaded.source == "org/name"
            assert await adapters.unload("sql", cancel=True) == Unloaded("sql", 2, 1234567)
            assert (await adapters.pin("sql")).pinned
            assert not (await adapters.unpin("sql")).pinned
            merged = await adapters.merge({"sql": 1}, "ties", 0.5, "total", "hf_y", timeout=2)
            assert merged.rank == 16
            with pytest.raises(NotFound, match="no luck"):
                await adapters.info("NOT_FOUND")
            with pytest.raises(TimedOut):
                await adapters.load("silent", timeout=-1.5)

    asyncio.run(run())
    assert {
        "action": ["load"], "adapter_id": ["sql"], "source": ["org/name"], "timeout": [3.0],
        "adapter_token": ["hf_x"],
    } in inputs(server)  # fmt: skip
    (merge,) = [each for each in inputs(server) if each["action"] == ["merge"]]
    assert json.loads(merge.pop("merge")[0]) == {
        "ids": ["sql"], "weights": [1], "merge_strategy": "ties", "density": 0.5,
        "majority_sign_method": "total",
    }  # fmt: skip
    assert merge == {"action": ["merge"], "adapter_token": ["hf_y"], "timeout": [2.0]}

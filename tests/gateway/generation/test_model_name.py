"""Which adapter a model's name means; whether there is one is the engine's to say."""

import asyncio
import dataclasses
import json
from collections.abc import Awaitable
from typing import Any, cast

import pytest
from starlette.responses import Response, StreamingResponse

from multilora.adapters.naming.source import check_name
from multilora.errors import RequestError
from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import GatewayError, openai_status
from multilora_gateway.generation.adapter_selection import AdapterSelection, selected_adapter
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.generation.model_name import (
    ResolvedModel,
    named_adapter,
    resolve,
    served_name,
)
from multilora_gateway.http.access import Caller
from multilora_gateway.openai.completions import CompletionBody
from multilora_gateway.routes.openai import list_models
from multilora_gateway.settings import Settings
from multilora_text.tokenizer import Tokenizer
from support.chats import RENDERER
from support.e2e.triton import DEMO
from support.fake.adapters import entry

NAMED = Settings(served_model_name="short")


@pytest.fixture(scope="module")
def base() -> ServedModel:
    return ServedModel(
        model_id="org/base:v1",
        model_sha=None,
        dtype="float32",
        device="cpu",
        max_input_tokens=10,
        max_total_tokens=16,
        max_batch_prefill_tokens=16,
        max_concurrent_requests=1,
        max_lora_rank=8,
        vocab_size=272,
        sampling_defaults={},
        tokenizer=Tokenizer.from_folder(DEMO / "base"),
    )


@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        ("org/base:v1", ""),
        ("short", ""),
        ("org/base:v1:sql", "sql"),
        ("short:org/sql", "org/sql"),
        ("short:s3://bucket/sql", "s3://bucket/sql"),
        ("sql", "sql"),
        ("org/base", "org/base"),
        ("shorter", "shorter"),
        ("nobody:sql", "nobody:sql"),
        ("SHORT", "SHORT"),
    ],
)
def test_a_name_is_the_base_or_an_adapter(base: ServedModel, model: str, adapter: str) -> None:
    assert named_adapter(model, NAMED, base) == adapter


def test_the_base_is_called_as_it_was_named(base: ServedModel) -> None:
    assert served_name(NAMED, base) == "short"
    assert served_name(dataclasses.replace(NAMED, served_model_name=""), base) == "org/base:v1"


class Server:
    """Knows its base and some adapters, and merges whatever it is told to."""

    def __init__(self, base: ServedModel, *known: str) -> None:
        self._base = base
        self._known = known
        self.merges: list[dict[str, Any]] = []

    async def base(self) -> ServedModel:
        return self._base

    async def has_adapter(self, name: str) -> bool:
        return name in self._known

    async def adapters(self, action: str, **inputs: Any) -> dict[str, Any]:
        if action == "list":
            return {"adapters": [entry(name) for name in self._known]}
        assert action == "merge"
        self.merges.append({**json.loads(inputs["merge"]), "token": inputs["adapter_token"]})
        return {"id": "merged:01"}


def context(server: Server | None, caller: Caller) -> RequestContext:
    return RequestContext(cast(Backend, server), RENDERER, NAMED, caller)


def resolved(server: Server, caller: Caller, **fields: Any) -> ResolvedModel:
    body = CompletionBody.model_validate({"prompt": "hello", **fields})
    return asyncio.run(resolve(context(server, caller), body.model, body.selection))


def test_loraxs_fields_name_adapters(base: ServedModel) -> None:
    server, team = Server(base), Caller(("team/*", "s3://team/*"))
    assert resolved(server, team, model="team/a", adapter_source="hub").adapter_id == "team/a"
    assert resolved(server, team, adapter_id="team/a", adapter_source="s3").name == "s3://team/a"
    merge = {"ids": ["team/a", "team/b"], "weights": [1.0, 0.5]}
    for model in ("short", "gpt-4", None):  # OpenAI's client always sends one
        target = resolved(server, team, model=model, merged_adapters=merge, api_token="hf_x")
        assert target == ResolvedModel("merged:01", "merged:01")
    assert server.merges == [{**merge, "token": "hf_x"}] * 3


@pytest.mark.parametrize("name", ["short", "org/base:v1", "__base_model__"])
def test_an_adapter_id_may_name_the_base(base: ServedModel, name: str) -> None:
    named = resolved(Server(base), Caller(()), adapter_id=name, model="sql")
    assert named == ResolvedModel("short", "")


def test_loraxs_name_of_the_base_is_known_to_both_apis() -> None:
    nobody = context(None, Caller(()))
    for source in (None, "hub", "s3"):
        selection = AdapterSelection("__base_model__", source)
        assert asyncio.run(selected_adapter(selection, nobody)) == ""


@pytest.mark.parametrize("name", ["short", "org/base:v1"])
def test_a_name_of_both_is_nobodys(base: ServedModel, name: str) -> None:
    server = Server(base, name)
    for fields in ({"model": name}, {"adapter_id": name, "model": "other"}):
        with pytest.raises(GatewayError, match=f"send '{name}:{name}'.*--served-model-name") as no:
            resolved(server, Caller(), **fields)
        assert openai_status(no.value) == 400
    assert resolved(server, Caller(), model=f"{name}:{name}").adapter_id == name
    assert resolved(server, Caller(), adapter_id="__base_model__").adapter_id == ""
    listed = json.loads(asyncio.run(body_of(list_models(context(server, Caller())))))["data"]
    assert [model["id"] for model in listed] == ["short", f"{name}:{name}"]


async def body_of(answer: Awaitable[Response]) -> str:
    streamed = await answer
    assert isinstance(streamed, StreamingResponse)
    return "".join([str(part) async for part in streamed.body_iterator])


@pytest.mark.parametrize("model", ["tgi", "dummy"])
def test_who_knows_no_name_means_the_base(base: ServedModel, model: str) -> None:
    assert resolved(Server(base), Caller(), model=model) == ResolvedModel("short", "")
    assert resolved(Server(base, model), Caller(), model=model) == ResolvedModel(model, model)


def test_an_adapter_id_may_begin_with_the_base(base: ServedModel) -> None:
    assert resolved(Server(base), Caller(), adapter_id="short:sql").adapter_id == "sql"


@pytest.mark.parametrize(
    "model",
    [
        "/etc", "../x", "~root", "a//b", "a/./b", "a/..", "a@", "a\\b", "a\n", "\0", "n" * 257,
        "short:/etc",
    ],
)  # fmt: skip
def test_what_no_adapter_can_be_called_is_an_unknown_model(base: ServedModel, model: str) -> None:
    with pytest.raises(GatewayError, match="there is no model") as caught:
        resolved(Server(base), Caller(), model=model)
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    with pytest.raises(RequestError):  # the gateway is not stricter than the engine
        check_name(model.removeprefix("short:"))
    assert len(caught.value.message) < 300
    with pytest.raises(GatewayError) as caught:
        resolved(Server(base), Caller(("team/*",)), model=model)
    assert caught.value.status == 403


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"adapter_id": "a", "merged_adapters": {"ids": ["a"], "weights": [1.0]}}, 422, "most one"),
        ({"merged_adapters": {"ids": ["team/a"], "weights": [1.0, 2.0]}}, 422, "same length"),
        ({"merged_adapters": {"ids": ["b"], "weights": [1.0]}}, 403, "may not use adapter 'b'"),
        ({"adapter_id": "team/a", "adapter_source": "s3"}, 403, "s3://team/a"),
        ({"adapter_id": "team/a", "adapter_source": "pbase"}, 422, "not supported"),
        ({"adapter_id": "merged:01"}, 403, "may not use"),
    ],
)
def test_what_lorax_fields_must_not_name(
    base: ServedModel, fields: dict[str, Any], status: int, message: str
) -> None:
    server = Server(base)
    with pytest.raises(GatewayError, match=message) as caught:
        resolved(server, Caller(("team/*", "m*")), **fields)
    assert caught.value.status == status
    assert not server.merges

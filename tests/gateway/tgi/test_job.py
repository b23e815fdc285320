"""A request of TGI's or LoRAX's form → what the engine is asked for."""

import asyncio
import json
from typing import Any, cast

import pytest

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.messages import GenerationRequest
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import GatewayError
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.http.access import Caller
from multilora_gateway.settings import Settings
from multilora_gateway.tgi.job import TgiJob, prepare
from multilora_gateway.tgi.parameters import GenerateRequest
from multilora_text.chat_template import ChatTemplates
from support.chats import RENDERER, only
from support.gateway.tgi import MAX_TOTAL, base_model

MERGED = {"ids": ["mine/a", "mine/b"], "weights": [1.0, 0.5], "density": 0.5}


class Server:
    """Knows its base, and merges whatever it is told to."""

    generating = 0

    def __init__(self) -> None:
        self.merges: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str]] = []

    async def base(self) -> ServedModel:
        return base_model()

    async def has_adapter(self, name: str) -> bool:
        return name != "base"

    async def templates(self, adapter_id: str, token: str) -> ChatTemplates:
        self.asked.append((adapter_id, token))
        return only("{{ messages[0].content }}")

    async def adapters(self, action: str, **inputs: Any) -> dict[str, Any]:
        assert action == "merge"
        self.merges.append(json.loads(inputs["merge"]))
        return {"id": "merged"}


def prepared(
    inputs: str = "hello",
    *,
    caller: Caller | None = None,
    server: Server | None = None,
    stream: bool = False,
    model: str | None = None,
    **parameters: Any,
) -> TgiJob:
    body = {"inputs": inputs, "model": model, "parameters": parameters}
    request = GenerateRequest.model_validate(body)
    backend = cast(Backend, server or Server())
    context = RequestContext(backend, RENDERER, Settings(), caller or Caller())
    return asyncio.run(prepare(request, context, stream))


def asked(**given: Any) -> GenerationRequest:
    (request,) = prepared(**given).requests
    return request


def sampling(**parameters: Any) -> dict[str, Any]:
    return dict(asked(**parameters).sampling)


def test_nothing_asked_is_greedy_and_as_long_as_possible() -> None:
    job = prepared()
    (request,) = job.requests
    assert request.sampling == {"max_tokens": MAX_TOTAL - job.input_length}
    assert (request.adapter_id, request.adapter_token, job.seed) == ("", "", None)
    assert sampling(stream=True)["logprobs"] == 0
    assert sampling(details=True, top_n_tokens=3)["logprobs"] == 3
    assert "seed" not in sampling(seed=3)  # there is nothing to draw


def test_names_of_the_engine() -> None:
    given = {
        "temperature": 0.5, "top_k": 3, "top_p": 0.9, "typical_p": 0.8, "seed": 2**64 - 1,
        "repetition_penalty": 1.5, "frequency_penalty": -1.0, "stop": ["x"],
    }  # fmt: skip
    found = sampling(max_new_tokens=5, ignore_eos_token=True, **given)
    assert found == {**given, "max_tokens": 5, "ignore_eos": True}


def test_sampling_draws_a_seed_and_a_temperature() -> None:
    found = sampling(do_sample=True)
    assert found["temperature"] == 1.0
    assert 0 <= found["seed"] < 2**53
    first, second = prepared(best_of=2, do_sample=True).requests
    assert first.sampling["seed"] != second.sampling["seed"]


@pytest.mark.parametrize(
    "given",
    [
        {"grammar": {"type": "json", "value": {"type": "object"}}},
        {"grammar": {"type": "json", "value": '{"type": "object"}'}},
        {"grammar": {"type": "json_schema", "value": {"schema": {"type": "object"}}}},
        {"response_format": {"type": "json_object", "schema": {"type": "object"}}},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_schemas(given: dict[str, Any]) -> None:
    assert sampling(**given)["grammar"] == {"type": "json", "value": {"type": "object"}}


@pytest.mark.parametrize(
    "given",
    [
        {"grammar": {"type": "json", "value": {"properties": {}}}},
        {"grammar": {"type": "json", "value": '{"properties": {}}'}},
        {"grammar": {"type": "json_schema", "value": {"schema": {"properties": {}}}}},
        {"response_format": {"type": "json_object", "schema": {"properties": {}}}},
    ],
)
def test_schemas_without_a_type_are_of_objects(given: dict[str, Any]) -> None:
    assert sampling(**given)["grammar"]["value"] == {"type": "object", "properties": {}}


@pytest.mark.parametrize("value", ["{", "[]", "7"])
def test_a_schema_must_be_an_object(value: str) -> None:
    with pytest.raises(GatewayError, match="`grammar` value"):
        sampling(grammar={"type": "json", "value": value})


def test_truncate_keeps_the_end() -> None:
    whole = asked(inputs="hello world").prompt_ids
    assert asked(inputs="hello world", truncate=2).prompt_ids == whole[-2:]


def test_a_prompt_that_is_too_long() -> None:
    with pytest.raises(GatewayError, match="must have less than"):
        prepared("x" * 10_000)
    assert prepared("x" * 10_000, truncate=5).input_length == 5


@pytest.mark.parametrize(
    ("adapter_id", "source", "expected"),
    [
        ("org/name", "hub", "org/name"),
        ("name", "s3", "name"),
        ("bucket/name", "s3", "s3://bucket/name"),
        ("s3://bucket/name", "s3", "s3://bucket/name"),
        ("/data/name", "local", "/data/name"),
        ("/data/name", "hub", None),
        ("s3://bucket/name", "local", None),
        ("s3://bucket/name", "hub", None),
    ],
)
def test_sources(adapter_id: str, source: str, expected: str | None) -> None:
    given: dict[str, Any] = {"adapter_id": adapter_id, "adapter_source": source}
    given["api_token"] = "secret"
    if expected is None:
        with pytest.raises(GatewayError, match="`adapter_source`"):
            prepared(**given)
    else:
        request = asked(**given)
        assert (request.adapter_id, request.adapter_token) == (expected, "secret")


def test_a_model_counts_where_the_parameters_name_no_adapter() -> None:
    assert asked(model="mine/a").adapter_id == "mine/a"
    assert asked(model="base").adapter_id == ""
    assert asked(model="mine/a", adapter_id="mine/b").adapter_id == "mine/b"
    assert asked(model="mine/a", merged_adapters=MERGED).adapter_id == "merged"


def test_a_private_template_is_asked_for_with_the_token() -> None:
    server = Server()
    prepared(server=server, adapter_id="a/b", api_token="hf_x", apply_chat_template=True)
    assert server.asked == [("a/b", "hf_x")]


def test_merging() -> None:
    server = Server()
    assert asked(server=server, merged_adapters=MERGED).adapter_id == "merged"
    assert server.merges == [MERGED]


@pytest.mark.parametrize(
    "given",
    [
        {"adapter_id": "other/a"},
        {"adapter_id": "mine/a", "adapter_source": "s3"},  # that is a bucket
        {"merged_adapters": {**MERGED, "ids": ["mine/a", "other/b"]}},
    ],
)
def test_adapters_of_others(given: dict[str, Any]) -> None:
    server, caller = Server(), Caller(("mine/*",))
    with pytest.raises(GatewayError) as caught:
        prepared(caller=caller, server=server, **given)
    assert caught.value.status == 403
    assert not server.merges
    assert asked(caller=caller, adapter_id="mine/a").adapter_id == "mine/a"
    assert asked(caller=caller).adapter_id == ""

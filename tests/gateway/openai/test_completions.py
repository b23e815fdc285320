"""A text completion of the OpenAI API's form → what the engine is asked for."""

import asyncio
import dataclasses
from typing import Any, cast

import pytest

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import GatewayError
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.http.access import Caller
from multilora_gateway.openai.completions import CompletionBody, completion_job
from multilora_gateway.openai.job import CompletionJob
from multilora_gateway.settings import Settings
from support.chats import RENDERER
from support.gateway.tgi import base_model


class Server:
    """Knows its base, and takes any other name for an adapter's."""

    generating = 0

    def __init__(self, base: ServedModel | None = None) -> None:
        self._base = base or base_model()

    async def base(self) -> ServedModel:
        return self._base

    async def has_adapter(self, name: str) -> bool:
        return name != "base"


def prepared(server: Server | None = None, /, **fields: Any) -> CompletionJob:
    body = CompletionBody.model_validate({"model": "base", "prompt": "hello", **fields})
    context = RequestContext(cast(Backend, server or Server()), RENDERER, Settings(), Caller())
    return asyncio.run(completion_job(body, context))


def test_a_request_holds_as_many_answers_as_ever_run_at_once() -> None:
    most = base_model().max_concurrent_requests
    job = prepared(prompt=["a", "bc"] * (most // 4), n=2)
    assert len(job.requests) == most
    assert job.prompt_tokens == 3 * (most // 4)
    for fields in ({"prompt": ["a"] * (most + 1)}, {"prompt": ["a"] * 4, "n": most}):
        with pytest.raises(GatewayError, match=f"at most {most} .*fewer prompts") as caught:
            prepared(**fields)
        assert caught.value.status == 422


@pytest.mark.parametrize("prompt", [[0, 299], [[0], [299]]])
def test_token_ids_of_the_vocabulary_are_taken(prompt: Any) -> None:
    assert prepared(prompt=prompt).prompt_tokens == 2


@pytest.mark.parametrize("prompt", [[0, -1, 5], [[0], [5, 300, 0]], [10**30]])
def test_other_token_ids_are_refused(prompt: Any) -> None:
    with pytest.raises(GatewayError, match="is no token id; they are 0 to 299"):
        prepared(prompt=prompt)


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], ["a", ""]])
def test_a_prompt_is_not_empty(prompt: Any) -> None:
    with pytest.raises(GatewayError, match="prompt is empty"):
        prepared(prompt=prompt)


@pytest.mark.parametrize(
    ("most", "fields", "kept"),
    [
        ((6, 99), {}, 6),
        ((9, 20), {}, 4),  # beside the 16 tokens of an answer of no given length
        ((9, 20), {"max_tokens": 12}, 8),
    ],
)
def test_a_prompt_is_cut_to_what_finds_room(
    most: tuple[int, int], fields: dict[str, Any], kept: int
) -> None:
    reads, holds = most
    base = dataclasses.replace(base_model(), max_input_tokens=reads, max_total_tokens=holds)
    job = prepared(Server(base), prompt=[*range(50)], truncate_prompt_tokens=-1, **fields)
    assert list(job.requests[0].prompt_ids) == [*range(50 - kept, 50)]


def test_a_truncated_prompt_is_echoed_as_it_was_read() -> None:
    job = prepared(truncate_prompt_tokens=2, echo=True)
    assert list(job.requests[0].prompt_ids) == base_model().tokenizer.encode("hello")[-2:]
    assert job.choice(0).opening()[0]["text"] == "llo"

"""A text completion of the OpenAI API's form → what the engine is asked for."""

import asyncio
import dataclasses
from typing import Any, cast

import pytest

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.messages import Entries
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import GatewayError
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.generation.parallel import GenerationResult
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


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({}, {}),
        ({"logprobs": 2}, {"logprobs": 2}),
        ({"echo": True}, {}),
        ({"echo": True, "logprobs": 2}, {"logprobs": 2, "prompt_logprobs": 2}),
        (
            {"echo": True, "logprobs": 2, "prompt_logprobs": 5},
            {"logprobs": 2, "prompt_logprobs": 5},
        ),
        ({"prompt_logprobs": 0}, {"prompt_logprobs": 0}),
    ],
)
def test_what_the_engine_tells_of_a_prompt(fields: Any, asked: dict[str, int]) -> None:
    (request,) = prepared(**fields).requests
    told = {name: most for name, most in request.sampling.items() if name.endswith("logprobs")}
    assert told == asked


@pytest.mark.parametrize("fields", [{"echo": True}, {"prompt_logprobs": 0}])
def test_nothing_is_generated_where_the_prompt_is_the_answer(fields: Any) -> None:
    whole = [5] * 64  # as many as are read, and as the next case shows as fill a sequence
    base = dataclasses.replace(base_model(), max_input_tokens=64, max_total_tokens=64)
    (request,) = prepared(Server(base), prompt=whole, max_tokens=0, **fields).requests
    assert request.sampling["max_tokens"] == 0
    with pytest.raises(GatewayError, match="shorten it"):
        prepared(Server(base), prompt=whole, max_tokens=1, **fields)
    with pytest.raises(GatewayError, match="max_tokens 0 asks for nothing"):
        prepared(max_tokens=0)


@pytest.mark.parametrize("fields", [{}, {"truncate_prompt_tokens": 3}])
def test_offsets_of_an_echo_are_those_of_its_text(fields: Any) -> None:
    """A special token that was sent as text is a token in it, and one that a cut prompt begins
    with is not."""
    job = prepared(prompt="he</s>y", echo=True, logprobs=0, max_tokens=0, **fields)
    prompt = tuple[Entries, ...]((None, *({str(each): {"logprob": -1.0, "rank": 1}}
             for each in job.requests[0].prompt_ids[1:])))  # fmt: skip
    whole = job.choice(0).whole(GenerationResult("", (), "length", prompt=prompt))
    assert whole["text"] == ("hey" if fields else "he</s>y")
    assert whole["logprobs"]["text_offset"] == ([0, 2, 2] if fields else [0, 2, 6])

"""The stream of a job of the OpenAI API."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.messages import Delta, GenerationRequest, Token
from multilora_gateway.errors import failed
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.generation.model_name import ResolvedModel
from multilora_gateway.http.access import Caller
from multilora_gateway.openai.completions import TextChoice
from multilora_gateway.openai.job import CompletionJob, events, whole_answer
from multilora_gateway.settings import Settings
from support.chats import RENDERER
from support.gateway.tgi import base_model


class Repeating:
    """Generates the prompt's ids as letters, none of them alone, then ends, or fails."""

    def __init__(self, fails: bool = False) -> None:
        self._fails = fails

    async def generate(self, asked: GenerationRequest) -> AsyncGenerator[Delta, None]:
        for token_id in asked.prompt_ids:
            yield Delta("", (Token(token_id),))
            yield Delta(chr(token_id), ())
        if self._fails:
            raise failed("broken")
        yield Delta("", (Token(0),), "stop")


def completion(backend: Repeating, *prompts: bytes, **fields: Any) -> Any:
    return CompletionJob(
        context=RequestContext(cast(Backend, backend), RENDERER, Settings(), Caller()),
        base=base_model(), requests=[GenerationRequest(prompt) for prompt in prompts],
        id_prefix="cmpl", object="text_completion", chunk_object="text_completion",
        model=ResolvedModel("base", ""),
        choice=lambda _: TextChoice(None),  # pyright: ignore
        prompt_tokens=len(b"".join(prompts)),
        **{"usage_in_stream": "last chunk", **fields},
    )  # fmt: skip


def streamed(job: Any) -> list[Any]:
    """The events; what is no JSON stays bytes."""

    async def run() -> list[bytes]:
        deltas = job.deltas()
        return [event async for event in events(job, await anext(deltas), deltas)]

    *found, done = b"".join(asyncio.run(run())).removesuffix(b"\n\n").split(b"\n\n")
    return [*(json.loads(each.removeprefix(b"data: ")) for each in found), done]


def test_an_error_in_the_stream_is_an_event_before_done() -> None:
    *chunks, error, done = streamed(completion(Repeating(fails=True), b"hi"))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["h", "i"]
    assert error["error"]["message"] == "broken"
    assert done == b"data: [DONE]"


def test_usage_in_every_chunk_is_that_of_its_choice() -> None:
    *chunks, last, _ = streamed(
        completion(Repeating(), b"hi", b"you", usage_in_stream="every chunk")
    )
    for number, prompt in enumerate((2, 3)):
        found = [c["usage"] for c in chunks if c["choices"][0]["index"] == number]
        assert [each["completion_tokens"] for each in found] == [*range(1, prompt + 1), prompt + 1]
        assert {each["prompt_tokens"] for each in found} == {prompt}
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    *chunks, last, _ = streamed(completion(Repeating(), b"hi"))
    assert [chunk["usage"] for chunk in chunks] == [None] * 3 and last["usage"]


def test_a_fingerprint_is_of_what_computes() -> None:
    base = base_model()
    others = ({"model_id": "x"}, {"model_sha": "x"}, {"dtype": "x"}, {"device": "x"})
    prints = {base.fingerprint, *(dataclasses.replace(base, **o).fingerprint for o in others)}
    assert len(prints) == 5 and base_model().fingerprint == base.fingerprint


@pytest.mark.parametrize("place", ["of answer", "of choice"])
def test_token_ids_are_told_once(place: str) -> None:
    """Of the prompt in the first chunk, or answer; of the answer where its text is."""
    asked: dict[str, Any] = {"token_ids": place, "usage_in_stream": "no chunk"}
    first, *more, _ = streamed(completion(Repeating(), b"hi", **asked))
    whole = asyncio.run(whole_answer(completion(Repeating(), b"hi", **asked)))
    for answer in (first, whole):
        told, other = answer, answer["choices"][0]
        if place == "of choice":
            told, other = other, told
        assert told["prompt_token_ids"] == list(b"hi") and "prompt_token_ids" not in other
    assert not any("prompt_token_ids" in {*each, *each["choices"][0]} for each in more)
    assert not any("usage" in each for each in (first, *more))
    ids = [each["choices"][0]["token_ids"] for each in (first, *more)]
    assert ids == [[ord("h")], [ord("i")], [0]]
    assert whole["choices"][0]["token_ids"] == [*b"hi", 0]
    without = asyncio.run(whole_answer(completion(Repeating(), b"hi")))
    assert "token_ids" not in without["choices"][0]

"""The bytes of TGI's events, and the objects of whole answers. The engine is a script here."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.messages import Delta, GenerationRequest, Token
from multilora_gateway.errors import GatewayError, overloaded
from multilora_gateway.generation.parallel import GenerationResult
from multilora_gateway.tgi.answer import (
    FinishedSequence,
    end_headers,
    events,
    finished_sequence,
    generated,
)
from multilora_gateway.tgi.job import TgiJob
from support.gateway.tgi import job, tokenizer

A, B = (tokenizer().encode(letter)[0] for letter in "ab")
END = tokenizer().token_id("</s>") or 0


class Script:
    """Says its deltas, or raises them."""

    def __init__(self, *deltas: Delta | GatewayError) -> None:
        self.deltas = deltas
        self.closed = False

    async def generate(self, asked: GenerationRequest) -> AsyncGenerator[Delta, None]:
        try:
            for delta in self.deltas:
                if isinstance(delta, GatewayError):
                    raise delta
                yield delta
        finally:
            self.closed = True


def scripted(script: Script, job: TgiJob) -> TgiJob:
    context = dataclasses.replace(job.context, backend=cast(Backend, script))
    return dataclasses.replace(job, context=context)


def finished(job: TgiJob, result: GenerationResult) -> FinishedSequence:
    return finished_sequence(job, job.requests[0], result)


def chunks(script: Script, job: TgiJob) -> list[bytes]:
    async def run() -> list[bytes]:
        return [chunk async for chunk in events(scripted(script, job))]

    return asyncio.run(run())


def delta(*ids: int, reason: str | None = None) -> Delta:
    return Delta("", tuple(Token(token_id, -0.25) for token_id in ids), reason)


def token(token_id: int, text: str, special: str = "false") -> str:
    return f'{{"id":{token_id},"text":"{text}","logprob":-0.25,"special":{special}}}'


def test_events_are_word_for_word() -> None:
    found = chunks(Script(delta(A), delta(B, reason="length")), job(details=True))
    middle = f'data:{{"index":1,"token":{token(A, "a")},"generated_text":null,"details":null}}\n\n'
    details = '{"finish_reason":"length","generated_tokens":2,"seed":null,"input_length":3}'
    last = f'data:{{"index":2,"token":{token(B, "b")},"generated_text":"ab","details":{details}}}'
    assert found == [middle.encode(), f"{last}\n\n".encode()]


def test_a_piece_of_several_tokens_is_several_events() -> None:
    found = chunks(Script(delta(A, B), delta(A, END, reason="stop")), job())
    parsed = [json.loads(line[5:]) for line in b"".join(found).decode().split("\n\n") if line]
    assert len(found) == 2
    assert [each["index"] for each in parsed] == [1, 2, 3, 4]
    assert [each["generated_text"] for each in parsed] == [None, None, None, "aba"]
    assert [each["token"]["text"] for each in parsed] == ["a", "b", "a", "</s>"]
    assert [each["token"]["special"] for each in parsed] == [False, False, False, True]
    assert parsed[-1]["details"] is None


def test_a_reason_without_a_token_ends_the_stream() -> None:
    found = chunks(Script(delta(A), delta(reason="length")), job(return_full_text=True))
    last = json.loads(found[-1][5:])
    assert (last["index"], last["generated_text"]) == (1, "helloa")


@pytest.mark.parametrize("before", [(), (delta(A),)])
def test_errors_are_events(before: tuple[Delta, ...]) -> None:
    script = Script(*before, overloaded())
    found = chunks(script, job())
    assert found[-1] == b'data:{"error":"Model is overloaded","error_type":"overloaded"}\n\n'
    assert len(found) == len(before) + 1
    assert script.closed


def test_a_stream_that_breaks_off_is_an_error() -> None:
    broken = GatewayError(500, "incomplete_generation", "Incomplete generation")
    last = json.loads(chunks(Script(delta(A), broken), job())[-1][5:])
    assert last == {
        "error": "Incomplete generation stream",
        "error_type": "incomplete_generation_stream",
    }


def test_closing_the_events_closes_the_engine() -> None:
    script = Script(delta(A), delta(B, reason="length"))

    async def run() -> None:
        stream = events(scripted(script, job()))
        await anext(stream)
        await stream.aclose()

    asyncio.run(run())
    assert script.closed


def answer(*tokens: tuple[int, float], reason: str = "length") -> GenerationResult:
    return GenerationResult("", tuple(Token(*each) for each in tokens), reason, 0.5)


def test_the_likeliest_is_the_answer() -> None:
    wanted = job(details=True, best_of=2, do_sample=True, seed=7)
    unlikely = finished(wanted, answer((A, -3.0), (A, -1.0)))
    likely = finished(wanted, answer((B, -1.0), (END, -1.5), reason="stop"))
    body, best = generated(wanted, [unlikely, likely])
    assert body["generated_text"] == "b"
    details: dict[str, Any] = body["details"]
    assert list(details) == [
        "finish_reason", "generated_tokens", "seed", "prefill", "tokens", "best_of_sequences",
    ]  # fmt: skip
    assert (details["finish_reason"], details["generated_tokens"]) == ("eos_token", 2)
    (other,) = details["best_of_sequences"]
    assert (other["generated_text"], other["finish_reason"], other["seed"]) == ("aa", "length", 7)
    assert end_headers(wanted, best)["x-generated-tokens"] == "2"


def test_details_only_when_asked() -> None:
    wanted = job(stop=["b", "a"])
    body, best = generated(wanted, [finished(wanted, answer((A, -1.0), reason="stop"))])
    assert body == {"generated_text": "a"}
    assert best.body["finish_reason"] == "stop_sequence"


def test_lorax_finds_its_fields() -> None:
    wanted = job(details=True, return_k_alternatives=1, api_token=None)
    token = Token(A, -1.0, ((B, -0.5), (A, -1.0)))
    generation = finished(wanted, GenerationResult("", (token,), "length"))
    details = generated(wanted, [generation])[0]["details"]
    assert details["prompt_tokens"] == wanted.input_length
    assert details["tokens"][0]["alternative_tokens"] == [{"id": B, "text": "b", "logprob": -0.5}]
    assert "top_tokens" not in details


def test_likely_tokens_are_lists_for_tgi() -> None:
    wanted = job(details=True, top_n_tokens=2)
    token = Token(A, -1.0, ((B, -0.5), (A, -1.0)))
    details = generated(wanted, [finished(wanted, GenerationResult("", (token,), "length"))])[0][
        "details"
    ]
    assert [[each["text"] for each in place] for place in details["top_tokens"]] == [["b", "a"]]


def test_the_prompt_is_among_the_details() -> None:
    wanted = job("he</s>", decoder_input_details=True)
    first, second = wanted.requests[0].prompt_ids
    entries = {str(second): {"logprob": -0.5, "rank": 9}}
    result = GenerationResult("", (Token(A, -1.0),), "length", prompt=(None, entries))
    details = generated(wanted, [finished(wanted, result)])[0]["details"]
    assert details["prefill"] == [
        {"id": first, "text": "he", "logprob": None},
        {"id": second, "text": "</s>", "logprob": -0.5},
    ]
    assert len(details["tokens"]) == 1

"""The stream of a job of the OpenAI API."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, cast

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.messages import Delta, GenerationRequest, Token
from multilora_gateway.errors import failed
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.generation.model_name import ResolvedModel
from multilora_gateway.http.access import Caller
from multilora_gateway.openai.completions import TextChoice
from multilora_gateway.openai.job import CompletionJob, events
from multilora_gateway.settings import Settings
from support.chats import RENDERER
from support.gateway.tgi import base_model


class Breaking:
    """Generates the prompt's ids as letters, then fails."""

    async def generate(self, asked: GenerationRequest) -> AsyncGenerator[Delta, None]:
        for token_id in asked.prompt_ids:
            yield Delta(chr(token_id), (Token(token_id),))
        raise failed("broken")


def test_an_error_in_the_stream_is_an_event_before_done() -> None:
    job: Any = CompletionJob(
        context=RequestContext(cast(Backend, Breaking()), RENDERER, Settings(), Caller()),
        base=base_model(), requests=[GenerationRequest(b"hi")],  # pyright: ignore
        id_prefix="cmpl", object="text_completion", chunk_object="text_completion",
        model=ResolvedModel("base", ""),
        choice=lambda _: TextChoice(None, "", False),  # pyright: ignore
        prompt_tokens=1, with_usage=True,
    )  # fmt: skip

    async def run() -> list[bytes]:
        deltas = job.deltas()
        return [event async for event in events(job, await anext(deltas), deltas)]

    *chunks, error, done = asyncio.run(run())
    texts = [json.loads(chunk.removeprefix(b"data: "))["choices"][0]["text"] for chunk in chunks]
    assert texts == ["h", "i"]
    assert json.loads(error.removeprefix(b"data: "))["error"]["message"] == "broken"
    assert done == b"data: [DONE]\n\n"

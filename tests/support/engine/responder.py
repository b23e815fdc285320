"""A responder with everything around it faked: the engine, the clients, the observer."""

import queue
import time
from collections.abc import Callable
from typing import Any

from multilora.errors import RequestError
from multilora.request import FinishReason, Request, TokenOutput
from multilora.wire.responder import Responder
from multilora.wire.response import JointResponse, Response, SharedResponse
from multilora.wire.stream import Client
from multilora.wire.triton_request import TritonRequest
from multilora_api.sampling import SamplingParams
from multilora_text.tokenizer import Tokenizer
from support.tiny.tokenizers import byte_level

TOKENIZER = Tokenizer(byte_level())
EOS = TOKENIZER.encode("</s>")[0]


class FakeEngine:
    def __init__(self) -> None:
        self.outputs: queue.SimpleQueue[list[TokenOutput] | None] = queue.SimpleQueue()
        self.aborted: list[str] = []

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)


class FakeClient:
    def __init__(self) -> None:
        self.responses: list[Any] = []
        self.outputs: frozenset[str] = frozenset()
        self.errors: list[RequestError] = []
        self.cancelled = False
        self.broken = False

    def send(self, response: Response | JointResponse | SharedResponse) -> None:
        if self.broken:
            raise RuntimeError("no way back")
        self.responses.append(response)

    def fail(self, error: RequestError) -> None:
        self.errors.append(error)

    def is_cancelled(self) -> bool:
        return self.cancelled

    @property
    def text(self) -> str:
        return "".join(response.text for response in self.responses)


class FakeObserver:
    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.ticks = 0

    def first_token(self, seconds: float) -> None:
        self.events.append(("first", 1))

    def next_tokens(self, count: int, seconds: float) -> None:
        self.events.append(("next", count))

    def tick(self) -> None:
        self.ticks += 1


class Bench:
    """A running responder with everything around it faked."""

    def __init__(self, start: bool = True) -> None:
        self.engine = FakeEngine()
        self.observer = FakeObserver()
        self.responder = Responder(self.engine, TOKENIZER, self.observer)
        if start:
            self.responder.start()

    def add(
        self,
        name: str,
        *,
        stream: bool = True,
        echo: bool = False,
        stop: tuple[str, ...] = (),
        sampling: SamplingParams | None = None,
        client: Client | None = None,
    ) -> FakeClient:
        """`client` instead of the one that is returned, which is told nothing then."""
        prompt = tuple(TOKENIZER.encode("prompt "))
        request = Request(name, prompt, "", sampling or SamplingParams(stop=stop))
        fake = FakeClient()
        wanted = TritonRequest(request, name.split("#")[0], stream, echo, frozenset())
        self.responder.add(wanted, client or fake)
        return fake

    def say(self, name: str, text: str, finish: FinishReason | None = None) -> list[TokenOutput]:
        ids = TOKENIZER.encode(text)
        last = len(ids) - 1
        return [
            TokenOutput(name, token_id, -0.5, finish_reason=finish if i == last else None)
            for i, token_id in enumerate(ids)
        ]

    def close(self) -> None:
        self.engine.outputs.put(None)
        self.responder.join()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)

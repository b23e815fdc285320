"""The responder: TokenOutputs of the engine → text → the clients that wait for it.

The responder thread hands the news of a stream to whichever sender thread is free: nearly all of
the time that sending takes is waiting for the server, without the interpreter's lock.

Laws. Every accepted request gets exactly one last word: a final Response or an error. A stream is
with one sender at a time, which takes all of its news before it sends, so one response may carry
several tokens and their order stays. A client that went away, and an answer that reached a stop
string, are aborted in the engine; what the engine still says about them is dropped.
"""

import logging
import queue
import threading
import time
from collections.abc import Iterable
from typing import Protocol

from multilora.errors import cancelled
from multilora.request import FinishReason, TokenOutput
from multilora.wire.stream import Client, Stream
from multilora.wire.triton_request import TritonRequest
from multilora_text.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.2  # how often clients are asked whether they are still there
_SENDERS = 4  # threads


class EngineOutputs(Protocol):
    """The side of the engine that the responder sees."""

    @property
    def outputs(self) -> "queue.SimpleQueue[list[TokenOutput] | None]": ...

    def abort(self, request_id: str) -> None: ...


class Observer(Protocol):
    """Told what clients experience; called on the responder thread."""

    def first_token(self, seconds: float) -> None:
        """Time from arrival to the first token of a request."""
        ...

    def next_tokens(self, count: int, seconds: float) -> None:
        """`count` further tokens of a request came `seconds` after the ones before."""
        ...

    def tick(self) -> None:
        """Called several times a second."""
        ...


class Responder:
    """Owns the live streams. `add`, `discard` and `stop` are for the Triton thread."""

    def __init__(self, engine: EngineOutputs, tokenizer: Tokenizer, observer: Observer) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._observer = observer
        self._streams: dict[str, Stream] = {}
        self._lock = threading.Lock()  # guards the dict, and `news` and `is_queued` of streams
        self._queued: queue.SimpleQueue[Stream | None] = queue.SimpleQueue()  # for the senders
        self._threads = [
            threading.Thread(target=self._loop, name="responder", daemon=True),
            *(
                threading.Thread(target=self._send_loop, name=f"sender-{index}", daemon=True)
                for index in range(_SENDERS)
            ),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until everything the engine said before it closed has been sent."""
        for thread in self._threads:
            thread.join()

    def add(self, request: TritonRequest, client: Client) -> None:
        """Expect outputs for a request; call before submitting it to the engine."""
        stream = Stream(request, client, self._tokenizer)
        with self._lock:
            self._streams[request.request.request_id] = stream

    def discard(self, request_id: str) -> None:
        """Forget a request that the engine did not accept."""
        with self._lock:
            self._streams.pop(request_id, None)

    def stop(self, client_id: str) -> None:
        """Cancel what runs under this client id; nothing runs under it: nothing happens."""
        for request_id, stream in self._live():
            if stream.request.client_id == client_id:
                self._engine.abort(request_id)

    def _loop(self) -> None:
        next_poll = 0.0
        while (outputs := self._take()) is not None:
            self._hand_over(outputs)
            if time.monotonic() >= next_poll:
                self._poll_clients()
                next_poll = time.monotonic() + _POLL_SECONDS
        for _ in range(_SENDERS):
            self._queued.put(None)

    def _take(self) -> list[TokenOutput] | None:
        """Everything queued, after a wait of at most one poll; None once the engine closed."""
        taken: list[TokenOutput] = []
        try:
            batch = self._engine.outputs.get(timeout=_POLL_SECONDS)
            while batch is not None:
                taken += batch
                batch = self._engine.outputs.get_nowait()
        except queue.Empty:
            return taken
        if not taken:
            return None
        self._engine.outputs.put(None)  # for the next call
        return taken

    def _hand_over(self, outputs: Iterable[TokenOutput]) -> None:
        by_request: dict[str, list[TokenOutput]] = {}
        for output in outputs:
            by_request.setdefault(output.request_id, []).append(output)
        advanced: list[tuple[Stream, int]] = []
        with self._lock:
            for request_id, news in by_request.items():
                stream = self._streams.get(request_id)
                if stream is None:
                    continue
                advanced.append((stream, sum(output.token_id is not None for output in news)))
                stream.news += news
                if not stream.is_queued:
                    stream.is_queued = True
                    self._queued.put(stream)
        now = time.monotonic()
        for stream, num_tokens in advanced:
            if num_tokens:
                self._observe(stream, num_tokens, now)

    def _observe(self, stream: Stream, num_tokens: int, now: float) -> None:
        if stream.last_token_at is None:
            self._observer.first_token(now - stream.request.request.arrived_at)
        else:
            self._observer.next_tokens(num_tokens, now - stream.last_token_at)
        stream.last_token_at = now

    def _send_loop(self) -> None:
        while (stream := self._queued.get()) is not None:
            while news := self._news(stream):
                self._deliver(stream, news)

    def _news(self, stream: Stream) -> list[TokenOutput]:
        """Without any, the stream is out of the sender's hands."""
        with self._lock:
            news, stream.news = stream.news, []
            stream.is_queued = bool(news)
            return news

    def _deliver(self, stream: Stream, news: list[TokenOutput]) -> None:
        request_id = stream.request.request.request_id
        try:
            ended = stream.ended or self._advance(stream, news)
        except Exception:
            _LOG.exception("sending to request %s failed", request_id)
            ended = True
            self._engine.abort(request_id)
        if ended:
            stream.ended = True
            self.discard(request_id)

    def _advance(self, stream: Stream, outputs: list[TokenOutput]) -> bool:
        """Give a stream its news; True when that was its last word."""
        last = outputs[-1]
        stopped = stream.push(outputs)
        if stopped and not last.finish_reason:
            self._engine.abort(last.request_id)
        if not stopped and last.finish_reason in (FinishReason.ERROR, FinishReason.CANCELLED):
            stream.client.fail(last.error or cancelled())
            return True
        reason = FinishReason.STOP if stopped else last.finish_reason
        response = stream.take_response(reason)
        if response is not None:
            stream.client.send(response)
        return reason is not None

    def _poll_clients(self) -> None:
        try:
            for request_id, stream in self._live():
                if stream.client.is_cancelled():
                    self._engine.abort(request_id)
            self._observer.tick()
        except Exception:  # no client may stop the thread that serves all of them
            _LOG.exception("polling clients failed")

    def _live(self) -> list[tuple[str, Stream]]:
        with self._lock:
            return list(self._streams.items())

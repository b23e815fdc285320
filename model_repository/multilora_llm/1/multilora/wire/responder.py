"""The responder thread: TokenOutputs of the engine → text → the clients that wait for it.

Laws. Every accepted request gets exactly one last word: a final Response or an error. All outputs
that have queued up are taken before anything is sent, so one response may carry several tokens. A
client that went away, and an answer that reached a stop string, are aborted in the engine; what
the engine still says about them is dropped.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Iterable
from typing import Protocol

from multilora.errors import cancelled, internal
from multilora.request import FinishReason, TokenOutput
from multilora.wire.shared_stream import SharedStreams
from multilora.wire.stream import Client, Stream
from multilora.wire.triton_request import TritonRequest
from multilora_text.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.2  # how often clients are asked whether they are still there


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
    """Owns the live streams, and the `shared` ones. `add`, `discard` and `stop` are for the Triton
    thread."""

    def __init__(self, engine: EngineOutputs, tokenizer: Tokenizer, observer: Observer) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._observer = observer
        self.shared = SharedStreams()
        self._streams: dict[str, Stream] = {}
        self._lock = threading.Lock()  # guards the dict, not the streams in it
        self._thread = threading.Thread(target=self._loop, name="responder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Wait until everything the engine said before it closed has been sent."""
        self._thread.join()

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
        self.shared.stop(client_id)
        for request_id, stream in self._live():
            if stream.request.client_id == client_id:
                self._engine.abort(request_id)

    def _loop(self) -> None:
        next_poll = 0.0
        while (outputs := self._take()) is not None:
            self._deliver(outputs)
            self.shared.flush()
            if time.monotonic() >= next_poll:
                self._poll_clients()
                next_poll = time.monotonic() + _POLL_SECONDS
        self.shared.close()

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

    def _deliver(self, outputs: Iterable[TokenOutput]) -> None:
        by_request: dict[str, list[TokenOutput]] = {}
        for output in outputs:
            by_request.setdefault(output.request_id, []).append(output)
        now = time.monotonic()
        for request_id, tokens in by_request.items():
            stream = self._streams.get(request_id)
            if stream is None:
                continue
            try:
                ended = self._advance(stream, tokens, now)
            except Exception as error:
                _LOG.exception("sending to request %s failed", request_id)
                ended = True
                self._engine.abort(request_id)
                with contextlib.suppress(Exception):  # mostly it is this way that is broken
                    unsent = f"the answer could not be sent ({error!r}); ask again"
                    stream.client.fail(internal(unsent))
            if ended:
                self.discard(request_id)

    def _advance(self, stream: Stream, outputs: list[TokenOutput], now: float) -> bool:
        """Give a stream its news; True when that was its last word."""
        last = outputs[-1]
        tokens = [output for output in outputs if output.token_id is not None]
        if tokens and stream.last_token_at is None:
            self._observer.first_token(now - stream.request.request.arrived_at)
        elif tokens and stream.last_token_at is not None:
            self._observer.next_tokens(len(tokens), now - stream.last_token_at)
        if tokens:
            stream.last_token_at = now
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
        self.shared.poll()

    def _live(self) -> list[tuple[str, Stream]]:
        with self._lock:
            return list(self._streams.items())

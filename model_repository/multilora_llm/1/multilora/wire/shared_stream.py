"""Shared streams: what the engine says to many requests of one client, in one response a step.

A response costs the Triton server, its backend and its reader far more than the token in it. So a
client with many requests at once opens a stream, and names it in its requests: their answers come
there, and each of them ends with an empty response of its own, or with its error.

Laws: what a request is told last stands in the shared stream before the request ends. A shared
stream ends when its client leaves or stops it, and once it has been of no use for a while: it would
hold up a server that is told to end. Who still answers through it then is cancelled.
"""

import logging
import threading
import time

from multilora.errors import ErrorCode, RequestError, cancelled, internal, invalid
from multilora.wire.response import JointResponse, Response, SharedPart, SharedResponse
from multilora.wire.stream import Client
from multilora_api.tensors import NOT_OPEN, OPEN_SHARED_STREAM, SHARED_STREAM

_IDLE_SECONDS = 1.0
_LOG = logging.getLogger(__name__)


class SharedStreams:
    """Those that are open, by the request id of their openers. `open` and `join` are for the Triton
    thread, `flush`, `poll` and `close` for the responder's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, _SharedStream] = {}

    def open(self, name: str, client: Client) -> None:
        """Raises RequestError for a name that is empty or taken."""
        if not name:
            raise invalid(f"{OPEN_SHARED_STREAM.name} needs a request id, which is its name")
        with self._lock:
            if name in self._open:
                raise invalid(f"shared stream {name!r} is open already; choose another request id")
        client.send(SharedResponse(()))  # before the responder's thread knows the client
        with self._lock:
            self._open[name] = _SharedStream(client, self._lock)

    def join(self, name: str, request_id: str, client: Client) -> Client:
        """The client of a request whose answer goes to the stream `name`; it is told of the errors,
        and of the end, by `client`. RequestError when none is open, or the id is in use there."""
        if not request_id:
            raise invalid(f"{SHARED_STREAM.name} needs a request id, which tells the answers apart")
        with self._lock:
            stream = self._open.get(name)
            if stream is None:
                message = (
                    f"{NOT_OPEN} under {name!r}; open one with {OPEN_SHARED_STREAM.name}, and wait "
                    "for its first response"
                )
                raise RequestError(ErrorCode.UNAVAILABLE, message)
            if request_id in stream.members:
                raise invalid(f"request id {request_id!r} is running in {name!r}; use another id")
            stream.members.add(request_id)
        return _Member(stream, request_id, client)

    def stop(self, name: str) -> None:
        """End the stream of that name, if there is one, soon."""
        with self._lock:
            if stream := self._open.get(name):
                stream.stopped = True

    def flush(self) -> None:
        """Send what has been said."""
        for _, stream in self._streams():
            stream.flush()

    def poll(self) -> None:
        """End those that have come to their end."""
        for name, stream in self._streams():
            with self._lock:
                if not stream.is_over():
                    continue
                del self._open[name]
            stream.end()

    def close(self) -> None:
        """End all."""
        for _, stream in self._streams():
            stream.end()

    def _streams(self) -> list[tuple[str, "_SharedStream"]]:
        with self._lock:
            return list(self._open.items())


class _SharedStream:
    def __init__(self, client: Client, lock: threading.Lock) -> None:
        self.members: set[str] = set()  # request ids; `lock` guards it
        self.lock = lock
        self.used_at = time.monotonic()
        self.stopped = self.ended = False
        self._client = client
        self._parts: list[SharedPart] = []
        self._ending: list[tuple[Client, Response]] = []

    def say(self, part: SharedPart) -> None:
        self._parts.append(part)

    def end_request(self, client: Client, reason: str) -> None:
        """Once what has been said is sent."""
        self._ending.append((client, Response("", finish_reason=reason)))

    def flush(self) -> None:
        parts, self._parts = self._parts, []
        ending, self._ending = self._ending, []
        if parts:
            try:
                self._client.send(SharedResponse(tuple(parts)))
            except Exception:  # the thread serves others, too
                _LOG.exception("sending to a shared stream failed")
                self.stopped = self.ended = True  # nothing may come after what is missing
        for client, response in ending:
            try:
                if self.ended:
                    client.fail(internal("its last words could not be sent; ask again"))
                else:
                    client.send(response)
            except Exception:
                _LOG.exception("ending a request failed")

    def is_over(self) -> bool:
        idle = not self.members and time.monotonic() > self.used_at + _IDLE_SECONDS
        try:
            return self.stopped or idle or self._client.is_cancelled()
        except Exception:
            _LOG.exception("asking for the client of a shared stream failed")
            return True

    def end(self) -> None:
        """After `flush`."""
        self.ended = True
        try:
            self._client.send(SharedResponse((), final=True))
        except Exception:
            _LOG.exception("ending a shared stream failed")


class _Member:
    """A Client. `send` is for the responder thread."""

    def __init__(self, stream: _SharedStream, request_id: str, client: Client) -> None:
        self.outputs: frozenset[str] = frozenset()
        self._stream = stream
        self._request_id = request_id
        self._client = client

    def send(self, response: Response | JointResponse | SharedResponse) -> None:
        assert not isinstance(response, SharedResponse)
        if self._stream.ended:  # before the engine was told that nobody listens
            return self.fail(cancelled()) if response.final else None
        parts = response.parts if isinstance(response, JointResponse) else (response,)
        for part in parts:
            self._stream.say(SharedPart(self._request_id, part, self.outputs))
        if response.final:
            self._stream.end_request(self._client, parts[-1].finish_reason)
            self._leave()

    def fail(self, error: RequestError) -> None:
        self._leave()
        self._client.fail(error)

    def is_cancelled(self) -> bool:
        return self._stream.ended or self._client.is_cancelled()

    def _leave(self) -> None:
        with self._stream.lock:
            self._stream.used_at = time.monotonic()
            self._stream.members.discard(self._request_id)

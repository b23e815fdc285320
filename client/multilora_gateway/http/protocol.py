"""HTTP/1.1 before routes and bodies: what connections and the heads of requests may take.

Laws: memory and time are bounded before a client has shown a key. Whatever proxies may read
otherwise than llhttp is refused. A refusal is never written into, or after, another answer: then
the connection is closed without one. A client that is refused while it still sends can read why.
"""

import asyncio
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from multilora_gateway.errors import GatewayError
from multilora_gateway.http.answer_headers import REQUEST_ID, request_id
from multilora_gateway.http.connections import MOST_LINGERING, ConnectionLimits, Connections
from multilora_gateway.http.error_answers import error_answer

MOST_HEADERS = 100
HEAD_BYTES = 65_536  # names and values of a request's headers
TARGET_BYTES = 16_384  # path and query
_WITHOUT_BODY = TARGET_BYTES + HEAD_BYTES  # bytes of a request that add nothing to its body
MOST_PIPELINED = 100  # requests of a connection that wait for the answer to another
_LINGER_SECONDS = 2.0  # after a refusal, in which a client may notice it and close
_LINGER_BYTES = 1 << 20
_REASONS = {408: "head_time", 414: "head_size", 431: "head_size"}  # others are "malformed"
_BYTES_ON_THE_WIRE = 8  # for each byte of a body; chunks of one byte take six


class HttpConfig(uvicorn.Config):
    """A server of `app` with limits. `refused` is told why something was refused, as
    GatewayMetrics.refuse is."""

    def __init__(
        self,
        app: ASGIApp,
        limits: ConnectionLimits,
        refused: Callable[[str], None] = lambda reason: None,
        **settings: Any,
    ) -> None:
        super().__init__(
            app, http=LimitedHttp, ws="none", log_config=None, access_log=False, **settings
        )
        self.limits = limits
        self.refused = refused
        self.open_connections = Connections(limits, refused)


class LimitedHttp(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self, config: HttpConfig, server_state: ServerState, *rest: Any, **more: Any
    ) -> None:
        super().__init__(config, server_state, *rest, **more)
        self.url = b""
        self.headers = []
        self._limits = config.limits
        self._open_connections = config.open_connections
        self._refused = config.refused
        self._address = ""
        self._lingers = False
        self._in_head = False  # between a request's first byte and the end of its headers
        self._room = _WITHOUT_BODY
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        if error := self._open_connections.open(self._address):
            self._answer(error)
            self._linger()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lingers:
            self._open_connections.lingering -= 1
        else:
            self._open_connections.close(self._address)
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._room -= len(data)
        if self._lingers:
            if self._room < 0:
                self.transport.abort()
            return
        super().data_received(data)
        if self._in_head and (error := self._head_error()):
            self._refuse(error)
        elif self._room < 0:
            self._refuse(_too_large() if self._in_head else _wrong("its chunks hold too little"))
        elif self._head_timer is None and (self._in_head or self._is_idle()):
            self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        if error := self._head_error() or self._framing_error():
            raise error
        super().on_headers_complete()
        self._in_head = False
        self.headers = []  # for trailers, which must not pass for headers
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_body(self, body: bytes) -> None:
        self._room += _BYTES_ON_THE_WIRE * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._room = _WITHOUT_BODY
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._lingers:
            return
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()  # What is still unsent its client has refused to read all this time.

    def send_400_response(self, msg: str) -> None:
        """Replaces uvicorn's answer to what its parser, or a method of this class, refuses."""
        error = sys.exception()
        cause = error.__context__ if error else None
        self._refuse(cause if isinstance(cause, GatewayError) else _wrong(str(error)))

    def _head_error(self) -> GatewayError | None:
        """What is too large in the part of a head that has arrived."""
        if len(self.url) > TARGET_BYTES:
            most = f"the URL has more than {TARGET_BYTES} bytes; shorten it"
            return GatewayError(414, "validation", most)
        size = sum([len(name) + len(value) for name, value in self.headers])
        return _too_large() if size > HEAD_BYTES or len(self.headers) > MOST_HEADERS else None

    def _framing_error(self) -> GatewayError | None:
        """What proxies may read otherwise, or this server does not do."""
        assert self.parser is not None
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            return GatewayError(505, "validation", f"HTTP/{version} is not served; use HTTP/1.1")
        if not self.url.startswith(b"/"):
            return _wrong("its target is no path; this server is no proxy")
        for name, value in self.headers:
            if name == b"transfer-encoding" and version == "1.0":
                return _wrong("HTTP/1.0 has no Transfer-Encoding")
            if name == b"transfer-encoding" and value.lower() != b"chunked":
                return GatewayError(501, "validation", "send the body plainly, or in chunks")
        if len(self.pipeline) >= MOST_PIPELINED:
            return _wrong("too many others wait before it")
        return None

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        if not self._is_idle():  # A client may wait for one answer before it asks on.
            return self._await_head()
        seconds = self._limits.head_seconds
        late = f"the headers did not arrive in {seconds:.0f} s; send them faster"
        self._refuse(GatewayError(408, "timeout", late))

    def _refuse(self, error: GatewayError) -> None:
        """Close the connection, with an answer if one is due."""
        if self._lingers or self.transport.is_closing():
            return
        self._refused(_REASONS.get(error.status, "malformed"))
        if self._in_head:
            due = self._is_idle()
        else:
            due = not (self._is_idle() or self.cycle.response_started or self.pipeline)
        if self.cycle is not None:
            self.cycle.disconnected = True
        if due:
            self._answer(error)
            self._linger()
        else:
            self._close()

    def _linger(self) -> None:
        """Close the connection once its client has closed it, or after some time.

        What arrives until then is dropped, up to a limit. Were it left unread, closing would reset
        the connection, and its client might lose the answer.
        """
        if self._open_connections.lingering >= MOST_LINGERING:
            return self._close()
        self._lingers = True
        self._room = _LINGER_BYTES
        self._open_connections.close(self._address)
        self._open_connections.lingering += 1
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self._close)

    def _close(self) -> None:
        """Close the connection once its client has read all, for which it has bounded time."""
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self._limits.write_seconds, self.transport.abort)

    def _answer(self, error: GatewayError) -> None:
        answer = error_answer(self.url.decode("latin-1"), error)
        status = f"HTTP/1.1 {answer.status_code} {HTTPStatus(answer.status_code).phrase}".encode()
        own = (REQUEST_ID.encode(), request_id(self.headers))
        headers = [*self.server_state.default_headers, *answer.raw_headers, own]
        lines = [status, *(b"%s: %s" % header for header in headers), b"connection: close"]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))


def _too_large() -> GatewayError:
    most = f"{MOST_HEADERS} headers, or of {HEAD_BYTES} bytes in them"
    return GatewayError(431, "validation", f"the request has more than {most}; send fewer")


def _wrong(reason: str) -> GatewayError:
    return GatewayError(400, "validation", f"this is no HTTP/1.1 request ({reason}); correct it")

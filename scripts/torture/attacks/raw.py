"""HTTP as no library writes it, to the gateway and to Triton's own ports."""

import contextlib
import json
import random
import socket
import threading
import time

from torture.findings import Round, Unexplained
from torture.server import ServerUnderTest
from torture.speak import Address, call, request_bytes

_GENERATE = json.dumps({"inputs": "hello", "parameters": {"max_new_tokens": 2}}).encode()
_HEAD = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_LENGTH = b"Content-Length: %d" % len(_GENERATE)
_CHUNKED = b"Transfer-Encoding: chunked"
_LIES = (  # about the length of _GENERATE
    b"Content-Length: 999", b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 0x10",
    b"Content-Length: " + b"9" * 30, _LENGTH + b"\r\nContent-Length: 1",
    _LENGTH + b"\r\n" + _CHUNKED, _CHUNKED + b", gzip",
    b"Transfer-Encoding:\tchunked\r\nTransfer-Encoding: identity",
)  # fmt: skip
_ODD = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /health\r\n\r\n", b"\x16\x03\x01\x02\x00\x01",
    b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n" * 5000,
    b"GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"BREW / HTTP/1.1\r\n\r\n",
    b"GET /page/..%2f..%2fsettings.py HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /%00%ff%2e%2e/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    _HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 2\n\n{}",
    _HEAD + b"X: a\r\n b\r\nY:\0\r\nContent-Length: 2\r\n\r\n{}",
    *(_HEAD + lie + b"\r\n\r\n" + _GENERATE for lie in _LIES),
)  # fmt: skip
_MOST_HEADER_BYTES = 8_000_000  # a server that takes as many has no limit
_DRIBBLERS = 500
_DRIBBLE_SECONDS = 20.0  # by then they must have been closed
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_OPERATORS = (  # the backend's own memory, the log and the trace are no client's business
    ("GET", "/v2/systemsharedmemory/status", None),
    ("POST", "/v2/systemsharedmemory/region/x/register", {"key": "/any", "byte_size": 64}),
    ("POST", "/v2/logging", {"log_verbose_level": 0}),
    ("POST", "/v2/trace/setting", {"trace_level": ["OFF"]}),
)


def gateway_bytes(round_: Round) -> None:
    """Nonsense, and in long rounds hundreds of connections that dribble."""
    gateway = round_.server.gateway

    def act(rng: random.Random) -> None:
        rng.choice((_pipelined, _chunked, _nonsense, _nonsense, _bomb, _foreign))(gateway, rng)

    def dribble() -> None:
        round_.attempt(lambda _: _dribble(gateway), "dribbling")

    dribbling = threading.Thread(target=dribble)
    if round_.seconds > _DRIBBLE_SECONDS:
        dribbling.start()
    round_.repeat(4, act)
    if dribbling.is_alive():
        dribbling.join()


def triton_bytes(round_: Round) -> None:
    """What once ended the server, what a web page could send, and what belongs to operators."""
    server = round_.server

    def act(rng: random.Random) -> None:
        rng.choice((_form, _many_chunks, _operator, _page, _garbled))(server, rng)
        if call(server.triton, "GET", "/v2/health/live", seconds=10).status != 200:
            raise Unexplained("the server does not live")

    round_.repeat(2, act)


def _exchange(address: Address, raw: bytes, seconds: float = 3.0) -> list[int]:
    """The statuses that come back; a connection that is closed without is an answer, too."""
    received = b""
    with address.connect(seconds) as sock, contextlib.suppress(OSError):
        sock.sendall(raw)
        while piece := sock.recv(65536):
            received += piece
    parts = received.split(b"HTTP/1.1 ")[1:]
    return [int(part[:3]) for part in parts if part[:3].isdigit()]


def _pipelined(gateway: Address, rng: random.Random) -> None:
    count = rng.randint(2, 40)
    last = request_bytes("/health", method="GET", headers={"Connection": "close"})
    found = _exchange(gateway, request_bytes("/generate", _GENERATE) * count + last, 60.0)
    if found != [200] * (count + 1):
        raise Unexplained(f"{count} pipelined: {found}")


def _chunked(gateway: Address, rng: random.Random) -> None:
    """Chunks with extensions, without an end, and with sizes that are none."""
    size = rng.randint(1, len(_GENERATE))
    extension = rng.choice((b"", b";a=b", b";" + b"x" * 5000, b';a="\r\n'))
    end = rng.choice((b"0\r\n\r\n", b"0\r\nTrailer: x\r\n\r\n", b"-1\r\n\r\n", b"zz\r\n\r\n", b""))
    pieces = [_GENERATE[at : at + size] for at in range(0, len(_GENERATE), size)]
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(each), extension, each) for each in pieces)
    found = _exchange(gateway, _HEAD + _CHUNKED + b"\r\n\r\n" + body + end)
    if size > 15 and not extension and end == b"0\r\n\r\n" and found != [200]:
        raise Unexplained(f"a right body in chunks of {size}: {found}")


def _nonsense(gateway: Address, rng: random.Random) -> None:
    raw = bytearray(request_bytes("/generate", _GENERATE))
    for _ in range(rng.randint(1, 4)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    sent = rng.choice((*_ODD, rng.randbytes(3000), *[bytes(raw)] * 9))
    found = _exchange(gateway, sent, 1.5)
    if any(status >= 500 and status not in (501, 503, 505) for status in found):
        raise Unexplained(f"{found} to {sent[:300]!r}")


def _bomb(gateway: Address, rng: random.Random) -> None:
    """Headers without end: many, or one."""
    line = rng.choice((b"X: %b\r\n" % (b"y" * 90), b"y" * 100)) * 1000
    with gateway.connect(3.0) as sock, contextlib.suppress(OSError):  # refused, as it should be
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        for _ in range(_MOST_HEADER_BYTES // len(line)):
            sock.sendall(line)
        raise Unexplained(f"{_MOST_HEADER_BYTES} bytes of headers were taken")


def _foreign(gateway: Address, rng: random.Random) -> None:
    """A page of another site: by a name of its own for this address, or by its form."""
    host, kind = rng.choice(((b"evil.example", b"application/json"), (b"localhost", b"text/plain")))
    head = b"POST /generate HTTP/1.1\r\nHost: %b\r\nContent-Type: %b\r\n" % (host, kind)
    if 200 in _exchange(gateway, head + _LENGTH + b"\r\n\r\n" + _GENERATE, 5.0):
        raise Unexplained(f"a foreign page was answered ({host} {kind})")


def _dribble(gateway: Address) -> None:
    """A byte a second on each of many connections."""
    socks: list[socket.socket] = []
    with contextlib.suppress(OSError):
        for _ in range(_DRIBBLERS):
            socks.append(gateway.connect(5.0))
            socks[-1].setblocking(False)
    began, left = time.monotonic(), socks
    while left and time.monotonic() - began < _DRIBBLE_SECONDS:
        left = [sock for sock in left if _drips(sock)]
        time.sleep(1.0)
    for sock in socks:
        sock.close()
    if left:
        raise Unexplained(f"{len(left)} of {len(socks)} are open after {_DRIBBLE_SECONDS:.0f} s")


def _drips(sock: socket.socket) -> bool:
    """Whether the connection is still open, after one byte more."""
    try:
        sock.send(b"P")
        return sock.recv(1000) != b"" and False
    except BlockingIOError:
        return True
    except OSError:
        return False


def _form(server: ServerUnderTest, rng: random.Random) -> None:
    body = rng.choice((b"x", b"=", b"&", b"%")) * rng.randint(3_000_000, 12_000_000)
    path = rng.choice(("/v2/models/multilora/generate", "/nothing", "/metrics"))
    address = server.metrics if path == "/metrics" else server.triton
    if 200 in _exchange(address, request_bytes(path, body, headers=_FORM), 20.0):
        raise Unexplained(f"a form was answered by {path}")


def _many_chunks(server: ServerUnderTest, rng: random.Random) -> None:
    head = b"POST /v2/models/multilora/generate HTTP/1.1\r\nHost: localhost\r\n" + _CHUNKED
    _exchange(server.triton, head + b"\r\n\r\n" + b"1\r\nx\r\n" * 600_000 + b"0\r\n\r\n", 20.0)


def _operator(server: ServerUnderTest, rng: random.Random) -> None:
    method, path, body = rng.choice(_OPERATORS)
    if (answer := call(server.triton, method, path, body, seconds=20)).status == 200:
        raise Unexplained(f"{method} {path}: {answer}")


def _page(server: ServerUnderTest, rng: random.Random) -> None:
    """What a browser sends for any page, without asking first."""
    body = json.dumps({"action": "unload", "adapter_id": "upper", "cancel": True}).encode()
    headers = {"Content-Type": "text/plain", "Origin": "http://evil.example"}
    answer = call(server.triton, "POST", "/v2/models/adapters/generate", body, headers=headers)
    if answer.status == 200:
        server.administer("load", adapter_id="upper")  # for the attacks that follow
        raise Unexplained(f"a page unloaded an adapter: {answer}")


def _garbled(server: ServerUnderTest, rng: random.Random) -> None:
    raw = bytearray(b'{"text_input": "hello", "max_tokens": 2, "adapter_id": "upper"}')
    for _ in range(rng.randint(1, 4)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    model = rng.choice(("multilora", "multilora_llm", "tokenizer", "adapters", "vllm_model"))
    answer = call(server.triton, "POST", f"/v2/models/{model}/generate", bytes(raw))
    if answer.problem.startswith("a defect"):  # Triton calls many mistakes of clients internal
        raise Unexplained(f"{bytes(raw)!r}: {answer}")

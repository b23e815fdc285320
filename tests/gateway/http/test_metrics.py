"""/metrics while the Triton server goes away, and what is refused before any route."""

import asyncio
import re
import socket
import threading

import pytest

from multilora_gateway.app import create_app
from multilora_gateway.http.connections import ConnectionLimits
from multilora_gateway.http.metrics import REFUSALS, GatewayMetrics
from multilora_gateway.settings import Settings
from support.gateway.serving import Served, rest_of, serving, wait_for

_BROKEN = (b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf")


@pytest.mark.parametrize("said", _BROKEN)
def test_its_own_figures_are_told_when_the_servers_break_off(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                client.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        metrics = GatewayMetrics(f"http://127.0.0.1:{listener.getsockname()[1]}/metrics")
        text = asyncio.run(metrics.text()).decode()
        thread.join()
    assert "gateway_open_requests 0.0" in text


def test_refusals_are_counted_by_their_reason() -> None:
    metrics = GatewayMetrics("")
    settings = Settings(triton_url="127.0.0.1:9")  # a Triton server that is not there
    app = create_app(settings, ("localhost",), metrics)
    limits = ConnectionLimits(in_all=2, per_client=1, head_seconds=0.3)
    counted: dict[str, int] = dict.fromkeys(REFUSALS, 0)
    with serving(app, limits, refused=metrics.refuse, lifespan="on") as served:
        for reason, head in (
            ("head_size", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 101 + b"\r\n"),
            ("head_size", b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n"),
            ("head_time", b"GET / HTTP/1.1\r\nHost: "),
            ("malformed", b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            ("malformed", b"hello\r\n\r\n"),
            ("host", b"GET / HTTP/1.1\r\nConnection: close\r\nHost: evil.example\r\n\r\n"),
        ):
            served.answer(head)
            wait_for(lambda: not served.connections)
            counted[reason] += 1
            assert _refused(metrics) == counted, head[:40]
        _fill(served, ["127.0.0.1", "127.0.0.1"])
        counted["connections_per_client"] += 1
        assert _refused(metrics) == counted
        _fill(served, ["127.0.0.1", "127.0.0.2", "127.0.0.3"])
        counted["connections"] += 1
        assert _refused(metrics) == counted


def _fill(served: Served, sources: list[str]) -> None:
    """Connect from each of `sources`; the last is refused."""
    clients = [served.connect(source) for source in sources]
    assert rest_of(clients[-1]).startswith(b"HTTP/1.1 503 ")
    for client in clients:
        client.close()
    wait_for(lambda: not served.connections)


def _refused(metrics: GatewayMetrics) -> dict[str, int]:
    text = asyncio.run(metrics.text()).decode()
    found = re.findall(r'gateway_refused_total{reason="(.*)"} (\d+)', text)
    return {reason: int(count) for reason, count in found}

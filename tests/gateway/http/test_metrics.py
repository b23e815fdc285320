"""/metrics while the Triton server goes away."""

import asyncio
import socket
import threading

import pytest

from multilora_gateway.http.metrics import GatewayMetrics

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

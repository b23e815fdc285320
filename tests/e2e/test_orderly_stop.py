"""What clients did does not keep the server from stopping in order."""

import json
import random
import socket
from concurrent.futures import ThreadPoolExecutor

from support.e2e.gateway import running_gateway
from support.e2e.tgi import post
from support.e2e.triton import demo_server

CLIENTS = 150


def leave_early(url: str, number: int) -> None:
    """Read a part of a stream, also its last words, and close the connection."""
    chance = random.Random(number)
    body = {"inputs": "hello world", "parameters": {"adapter_id": "upper", "max_new_tokens": 20}}
    content = json.dumps(body).encode()
    head = (
        f"POST /generate_stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    )
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
        for _ in range(chance.randrange(1, 14)):
            if not connection.recv(300):
                break


def test_refused_and_vanished_clients() -> None:
    with demo_server() as server:
        with running_gateway(server) as url, ThreadPoolExecutor(6) as pool:
            body = {"inputs": "hello", "parameters": {"adapter_id": "nobody"}}
            refused = list(pool.map(lambda _: post(url, "/generate", body), range(CLIENTS)))
            assert {answer.status_code for answer in refused} == {404}
            list(pool.map(lambda number: leave_early(url, number), range(CLIENTS)))
        process = server._process
    assert process and process.returncode == 0, "the Triton server had to wait for lost requests"

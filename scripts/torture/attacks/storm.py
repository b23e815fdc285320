"""Long generations that are left, cancelled and stopped at any moment, on every way in."""

import contextlib
import json
import random
import socket
import time

from multilora_client import MultiLoRAClient
from torture.findings import Round, Unexplained
from torture.server import ServerUnderTest
from torture.speak import Address, call, request_bytes

_LONG = 900
_WORKERS = 8
_PATIENT_SECONDS = 300  # for a first token or a whole answer: others may be preferred
_STREAM = "/v2/models/multilora_llm/generate_stream"  # an ensemble cannot be told who left


def storm(round_: Round) -> None:
    """Also preempts: eight long sequences need several times the keys and values that there are."""
    server = round_.server
    ways = (_leave_tgi, _leave_openai, _leave_triton, _leave_grpc, _stop, _read_on)

    def act(rng: random.Random) -> None:
        rng.choice(ways)(server, rng.choice(["", *server.skills]), rng)

    round_.repeat(_WORKERS, act)


def _leave_tgi(server: ServerUnderTest, name: str, rng: random.Random) -> None:
    limits = {"adapter_id": name, "max_new_tokens": _LONG, "ignore_eos_token": True}
    path = rng.choice(("/generate", "/generate_stream"))
    _leave(server.gateway, path, {"inputs": "hello", "parameters": limits}, rng)


def _leave_openai(server: ServerUnderTest, name: str, rng: random.Random) -> None:
    body = {"model": name or "multilora-demo", "max_tokens": _LONG, "ignore_eos": True}
    body |= {"stream": rng.random() < 0.5, "messages": [{"role": "user", "content": "hello"}]}
    _leave(server.gateway, "/v1/chat/completions", body, rng)


def _leave_triton(server: ServerUnderTest, name: str, rng: random.Random) -> None:
    body = {"text_input": "hello", "adapter_id": name, "max_tokens": _LONG, "ignore_eos": True}
    _leave(server.triton, _STREAM, {**body, "stream": True}, rng)


def _leave_grpc(server: ServerUnderTest, name: str, rng: random.Random) -> None:
    with MultiLoRAClient(server.grpc, timeout=_PATIENT_SECONDS) as client:
        stream = client.stream("hello", adapter_id=name, max_tokens=_LONG, ignore_eos=True)
        for _ in range(rng.randrange(4)):
            next(stream)
        stream.close()


def _stop(server: ServerUnderTest, name: str, rng: random.Random) -> None:
    """Another request stops a running one, by its id."""
    body = {"text_input": "hello", "adapter_id": name, "id": f"storm-{rng.getrandbits(64)}"}
    with server.triton.connect() as sock:
        long = {**body, "max_tokens": _LONG, "ignore_eos": True, "stream": True}
        sock.sendall(request_bytes(_STREAM, json.dumps(long).encode()))
        time.sleep(rng.random() * 0.3)
        path = _STREAM.removesuffix("_stream")
        answer = call(server.triton, "POST", path, {**body, "stop": True})
    if answer.status != 200:
        raise Unexplained(f"stop: {answer}")


def _read_on(server: ServerUnderTest, name: str, rng: random.Random) -> None:
    """Somebody reads to the end between those who leave."""
    tokens = rng.randrange(1, 300)
    with MultiLoRAClient(server.grpc, timeout=_PATIENT_SECONDS) as client:
        done = client.generate("hello", adapter_id=name, max_tokens=tokens, ignore_eos=True)
    if done.num_output_tokens != tokens:
        raise Unexplained(f"{done.num_output_tokens} tokens instead of {tokens}")


def _leave(address: Address, path: str, body: object, rng: random.Random) -> None:
    """Close a connection at any moment, in order or by a reset."""
    request = request_bytes(path, json.dumps(body).encode())
    with address.connect() as sock:
        sock.sendall(request if rng.random() < 0.9 else request[: rng.randrange(len(request))])
        if rng.random() < 0.3:
            sock.settimeout(1.0)
            with contextlib.suppress(TimeoutError):
                sock.recv(1000)
        time.sleep(rng.random() * 0.3)
        if rng.random() < 0.3:  # closing sends a reset
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

"""Adapters that come and go under load: churn, and lists asked for from many threads."""

import random
import threading
import time

from multilora_client import MultiLoRAClient
from torture.findings import Round, Unexplained, WrongAnswer
from torture.server import Example
from torture.speak import Answer, call
from torture.ways import WAYS

_COPIES = 10
_SETTLED_SECONDS = 3.0  # after a change; the docs promise about one


class _Copy:
    """An adapter of the directory: a copy of one of the demo's.

    What is asked of it while it changes may be refused, or answered with the skill of before or of
    after; only from `settled` on, in time.monotonic(), is the answer known.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.skill = ""
        self.settled = float("inf")
        self.lock = threading.Lock()  # one change at a time


def churn(round_: Round) -> None:
    """Known answers while adapters are loaded, unloaded, evicted and replaced."""
    server = round_.server
    names = [name for name in server.skills if name != "json"]  # whose rank fills the pool
    examples = {name: [e for e in server.examples if e.adapter_id == name] for name in names}
    copies = [_Copy(f"copy/a{number}") for number in range(_COPIES)]

    def change(copy: _Copy, act: str, rng: random.Random) -> None:
        with copy.lock:
            copy.settled = float("inf")
            extra = {"cancel": rng.random() < 0.3} if act == "unload" else {}
            if act == "load":
                copy.skill = rng.choice(names)
                server.place(copy.name, copy.skill)
            answer = server.administer(act, adapter_id=copy.name, **extra)
            copy.settled = time.monotonic() + _SETTLED_SECONDS
        if answer.problem:
            raise Unexplained(f"{act} {copy.name}: {answer.problem}")

    def fixed(rng: random.Random) -> None:
        example = rng.choice(server.examples)
        _check(rng.choice(WAYS)(server, example, example.adapter_id), example)

    def copied(rng: random.Random) -> None:
        copy, began = rng.choice(copies), time.monotonic()
        example = rng.choice(examples[copy.skill])
        answer = rng.choice(WAYS)(server, example, copy.name)
        if copy.settled < began:  # nothing has changed since then either
            _check(answer, example)
        elif isinstance(answer, Answer) and answer.problem:
            raise Unexplained(f"{copy.name}: {answer}")

    def disturb(rng: random.Random) -> None:
        change(rng.choice(copies[::2]), rng.choice(("load", "load", "unload", "pin", "unpin")), rng)
        time.sleep(rng.random() * 0.2)

    for copy in copies:
        change(copy, "load", round_.rng(copy.name))
    round_.repeat(8, fixed, copied, copied, disturb)
    for copy in copies:
        change(copy, "unpin", round_.rng())


def listing(round_: Round) -> None:
    """Lists and infos from 8 threads, over gRPC, Triton's HTTP and the gateway."""
    server = round_.server

    def over_grpc(rng: random.Random) -> None:
        if rng.random() < 0.5:
            _check_names({entry.id for entry in client.adapters.list()}, server.skills)
        else:
            name = rng.choice(server.skills)
            _check_names({client.adapters.info(name).id}, [name])

    def over_http(rng: random.Random) -> None:
        path = rng.choice(("/adapters", "/v1/models", "/v2/models/adapters/generate"))
        body = {"action": "list"} if "generate" in path else None
        address, method = (server.triton, "POST") if body else (server.gateway, "GET")
        answer = call(address, method, path, body)
        if answer.status != 200:
            raise Unexplained(str(answer))
        _check_names(answer.body.decode(), server.skills)

    with MultiLoRAClient(server.grpc, timeout=30) as client:
        round_.repeat(8, over_grpc, over_http)


def _check_names(found: set[str] | str, wanted: list[str]) -> None:
    if missing := [name for name in wanted if name not in found]:
        raise WrongAnswer(f"{missing} are not in the answer")


def _check(answer: str | Answer, example: Example) -> None:
    if isinstance(answer, Answer):
        raise Unexplained(f"{example.adapter_id or 'base'}: {answer}")
    if answer != example.answer:
        raise WrongAnswer(f"{answer!r}, not {example}")

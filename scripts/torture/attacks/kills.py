"""Processes that are killed, and processes that stand still for a while: the server goes on."""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable

from launcher.restart import MOST_DEATHS, SERVED_SECONDS
from torture.canary import Song, stream
from torture.findings import Round, Unexplained
from torture.processes import HELPER

_AGAIN_SECONDS = 30.0  # after a kill
_GOES_ON_SECONDS = 10.0  # after a process goes on that was stopped
_TOLD_SECONDS = 10.0  # by then a client in a broken stream knows
_STILL = (1.0, 4.0)  # seconds


def kills(round_: Round) -> None:
    """SIGKILL of the gateway, the Triton server and each of its models, one after the other."""
    _one_by_one(round_, lambda pid, _: os.kill(pid, signal.SIGKILL), _AGAIN_SECONDS)


def stops(round_: Round) -> None:
    """SIGSTOP, a few seconds, SIGCONT."""

    def halt(pid: int, rng: random.Random) -> None:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(rng.uniform(*_STILL))
        with contextlib.suppress(ProcessLookupError):  # somebody may have ended it meanwhile
            os.kill(pid, signal.SIGCONT)

    _one_by_one(round_, halt, _GOES_ON_SECONDS)


def _one_by_one(round_: Round, hurt: Callable[[int, random.Random], None], seconds: float) -> None:
    """Each time a client is in the middle of a stream, which ends with the rest or an error."""
    server, number = round_.server, 0

    def act(rng: random.Random) -> None:
        found = {name: pid for pid, name in server.processes().items() if name != HELPER}
        del found["launcher"]
        name = sorted(found)[number % len(found)]
        # A Triton server is started again with all its models; the gateway stands alone.
        gateway = {found["gateway"]}
        round_.findings.ended |= gateway if name == "gateway" else {*found.values()} - gateway
        heard: list[Song] = []
        listener = threading.Thread(
            target=lambda: heard.append(stream(server.gateway, server.examples[0], tokens=300))
        )
        listener.start()
        time.sleep(0.3)
        hurt(found[name], rng)
        if not server.wait_serving(seconds):
            raise Unexplained(f"{name}: no right answer within {seconds:.0f} s")
        listener.join(_TOLD_SECONDS)
        problem = heard[0].problem if heard and heard[0].broken else ""
        told = problem.startswith("event") or name == "gateway"  # which cannot tell any more
        if not heard or (problem and not told):
            raise Unexplained(f"{name}: a stream {problem or 'goes on and on'}")

    while (round_.left > 0 or not number) and server.is_running:
        round_.attempt(act, number)
        number += 1
        few = number < MOST_DEATHS - 1  # The launcher gives up who dies more often in a row.
        time.sleep(1.0 if few else SERVED_SECONDS + 1.0)  # the canary sings between the two

"""What an attack does and finds: the round that it is given, and the faults that it reports."""

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torture.server import ServerUnderTest

_SAMPLES = 5  # faults of a kind that are told in words
_GIVES_UP = 20  # faults of one worker: what is broken for good need not be asked on
_NICE = 10  # the attackers yield to the server and the canary on a machine that they share
_SECONDS = 120.0  # that an operation may take beyond its round


class WrongAnswer(Exception):
    """The server answered, and the answer is not the known one."""


class Unexplained(Exception):
    """An error that no rule explains: an internal error, a broken connection, a missing reason."""


@dataclass
class Findings:
    """What one attack has found so far. Used by any thread."""

    operations: int = 0
    wrong: int = 0
    leaks: int = 0
    errors: int = 0
    deaths: int = 0
    samples: list[str] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)  # process ids that the attack ended itself

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def did(self) -> None:
        with self._lock:
            self.operations += 1

    def fault(self, kind: str, what: str) -> None:
        """`kind` is "wrong", "leaks", "errors" or "deaths"."""
        with self._lock:
            count = getattr(self, kind) + 1
            setattr(self, kind, count)
            if count <= _SAMPLES:
                self.samples.append(f"{kind}: {what[:600]}")


class Round:
    """One attack's turn: the server, the time, the seed, and where faults go.

    Every operation draws from a generator of its own, made of seed, attack, worker and number, so
    that the same seed sends the same inputs whatever the threads do.
    """

    def __init__(
        self, name: str, server: ServerUnderTest, seed: int, seconds: float, findings: Findings
    ) -> None:
        self.name = name
        self.server = server
        self.seconds = seconds
        self.findings = findings
        self._source = f"{seed}/{name}"
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def rng(self, *what: object) -> random.Random:
        return random.Random(f"{self._source}/{what}")

    def attempt(self, act: Callable[[random.Random], None], *what: object) -> bool:
        """One operation; whether it found no fault. Other exceptions are unexplained errors."""
        try:
            act(self.rng(*what))
        except WrongAnswer as error:
            self.findings.fault("wrong", f"operation {what}: {error}")
        except Exception as error:  # whatever an attack did not expect of the server is a fault
            kind = "" if isinstance(error, Unexplained) else f"{type(error).__name__}: "
            self.findings.fault("errors", f"operation {what}: {kind}{error}")
        else:
            return True
        finally:
            self.findings.did()
        return False

    def repeat(self, workers: int, *acts: Callable[[random.Random], None]) -> None:
        """Operations on `workers` threads until the time is over, at least one on each; worker i
        does acts[i % n]."""

        def work(worker: int) -> None:
            lower_priority()
            act, number, faults = acts[worker % len(acts)], 0, 0
            while number == 0 or (self.left > 0 and faults < _GIVES_UP):
                faults += not self.attempt(act, worker, number)
                number += 1

        threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, self.left) + _SECONDS)
        if late := sum(thread.is_alive() for thread in threads):
            self.findings.fault("errors", f"{late} operations do not end")


def lower_priority() -> None:
    """Of the calling thread, and of those that it starts."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)

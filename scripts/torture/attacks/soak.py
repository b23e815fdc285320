"""An ordinary day: known answers, while every process is measured; what grows is a leak."""

import random
import threading
import time

from benchmarks.common.statistics import median
from torture.findings import Round, Unexplained, WrongAnswer
from torture.processes import HELPER, ProcessFigures, figures
from torture.ways import WAYS

_LOOKS = 120  # at each process, over the whole time
_MOST_SHARE = 0.05  # of its memory, that a process may grow by from one quarter to the next
_MOST = ProcessFigures(rss=24.0, fds=12, threads=12)  # growth that is no leak yet


def soak(round_: Round) -> None:
    server = round_.server
    seen: dict[tuple[int, str], list[ProcessFigures]] = {}

    def look() -> None:
        while round_.left > 0:
            for process in server.processes().items():
                if now := figures(process[0]):
                    seen.setdefault(process, []).append(now)
            time.sleep(max(0.2, round_.seconds / _LOOKS))

    def ask(rng: random.Random) -> None:
        example = rng.choice(server.examples)
        answer = rng.choice(WAYS)(server, example, example.adapter_id)
        if not isinstance(answer, str):
            raise Unexplained(str(answer))
        if answer != example.answer:
            raise WrongAnswer(f"{answer!r}, not {example}")
        time.sleep(rng.random() * 0.2)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    round_.repeat(4, ask)
    looking.join()
    for (_, name), samples in seen.items():
        if name != HELPER:
            for what in _growth(samples):
                round_.findings.fault("leaks", f"{name}: {what}")


def _growth(samples: list[ProcessFigures]) -> list[str]:
    """What grew from the third quarter to the last: by then all pools are full."""
    quarter = len(samples) // 4
    if quarter < 3:
        return []
    parts = (
        zip(*samples[-2 * quarter : -quarter], strict=True),
        zip(*samples[-quarter:], strict=True),
    )
    first, last = (ProcessFigures(*map(median, part)) for part in parts)
    most = _MOST._replace(rss=max(_MOST.rss, first.rss * _MOST_SHARE))
    grown = [after - before > least for before, after, least in zip(first, last, most, strict=True)]
    return [f"grew from {first} to {last}"] if any(grown) else []

"""The canary: streams whose texts are known, one after the other, for as long as an attack lasts.

It has a process of its own, so that the attackers' threads do not slow its clock, and an address of
its own, as a good client beside a bad one has.
"""

import http.client
import json
import multiprocessing
import time
from queue import Empty
from typing import Any, NamedTuple

from benchmarks.common.statistics import percentile
from torture.server import Example
from torture.speak import Address

_SOURCE = "127.0.0.2"
_PAUSE_SECONDS = 0.25  # after a stream that broke
_SECONDS = 60.0


class Song(NamedTuple):
    """One stream: the seconds between its tokens, and what was wrong, "" for nothing.

    `broken`: it was refused or broke off, which some attacks explain. A wrong text nothing does.
    """

    gaps: list[float]
    problem: str = ""
    broken: bool = False


class Canary:
    """Sings from `sing` to `rest`, which gives the songs."""

    def __init__(self, gateway: Address, examples: list[Example]) -> None:
        context = multiprocessing.get_context("spawn")
        self._songs = context.Queue()
        self._singing, self._silent = context.Event(), context.Event()
        arguments = gateway, examples, self._songs, self._singing, self._silent
        self._process = context.Process(target=_sing, args=arguments, daemon=True)
        self._process.start()

    def sing(self) -> None:
        self._silent.clear()
        self._singing.set()

    def rest(self) -> list[Song]:
        """Returns once no stream of the canary runs."""
        self._singing.clear()
        self._silent.wait(2 * _SECONDS)
        songs: list[Song] = []
        try:
            while True:
                songs.append(self._songs.get(timeout=0.5))
        except Empty:
            return songs

    def close(self) -> None:
        self._process.terminate()


def pace(songs: list[Song]) -> float | None:
    """The 99th percentile of the seconds between tokens; None without tokens."""
    gaps = [gap for song in songs for gap in song.gaps]
    return percentile(gaps, 99) if gaps else None


def _sing(gateway: Address, examples: list[Example], songs: Any, singing: Any, silent: Any) -> None:
    while True:
        for example in examples:
            if not singing.is_set():
                silent.set()
                singing.wait()
            song = stream(gateway, example)
            songs.put(song)
            time.sleep(_PAUSE_SECONDS * song.broken)


def stream(gateway: Address, example: Example, tokens: int = 0) -> Song:
    """POST /generate_stream, read to its end; with `tokens` to that many, and its text is not
    known."""
    limits = {"max_new_tokens": tokens or 200, "ignore_eos_token": bool(tokens)}
    parameters = {"adapter_id": example.adapter_id, **limits}
    body = json.dumps({"inputs": example.prompt, "parameters": parameters})
    source = (_SOURCE, 0)
    connection = http.client.HTTPConnection(*gateway, timeout=_SECONDS, source_address=source)
    gaps: list[float] = []
    last, text = 0.0, None
    try:
        connection.request("POST", "/generate_stream", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            return Song(gaps, f"was refused: {response.status} {response.read()[:200]!r}", True)
        for line in response:
            if not line.startswith(b"data:"):
                continue
            now, event = time.perf_counter(), json.loads(line[5:])
            if "error" in event:
                return Song(gaps, f"event {event}", broken=True)
            if last:
                gaps.append(now - last)
            last, text = now, event.get("generated_text") or text
    except (OSError, http.client.HTTPException) as error:
        return Song(gaps, f"broke: {type(error).__name__}: {error}", broken=True)
    finally:
        connection.close()
    if text is None:
        return Song(gaps, "ended without its last event", broken=True)
    right = tokens or text == example.answer
    return Song(gaps, "" if right else f"{text!r}, not {example.answer!r}")

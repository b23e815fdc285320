"""One client of an engine in process: it submits requests and stamps their tokens as they come.

The client has no thread of its own: whoever measures calls `read`. Laws: times are those of
time.perf_counter; prompts are random, so the prefix cache never helps; every request runs to
max_tokens unless it is aborted, anything else ends the benchmark.
"""

import itertools
import math
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch

from multilora.base_model.config import NativeConfig
from multilora.config import EngineConfig
from multilora.engine import Engine
from multilora.lora.rank_pages import bytes_per_page
from multilora.request import FinishReason, Request, TokenOutput
from multilora_api.sampling import SamplingParams

_SILENCE_SECONDS = 120.0  # without a token while requests run: something hangs


class BenchmarkError(Exception):
    """The engine did something that makes the measurement meaningless."""


@dataclass(frozen=True)
class Work:
    """One request to be made."""

    adapter_id: str
    prompt_tokens: int
    max_tokens: int


@dataclass
class TimedAnswer:
    """When a request was submitted and when each of its tokens came. Filled by the EngineClient."""

    request_id: str
    work: Work
    submitted: float
    times: list[float] = field(default_factory=list)
    ended: bool = False
    aborted: bool = False

    @property
    def first_token(self) -> float:
        """Seconds."""
        return self.times[0] - self.submitted

    def gaps(self, begin: float, end: float) -> list[float]:
        """Seconds between tokens that came one after the other from `begin` to `end`."""
        times = [when for when in self.times if begin <= when <= end]
        return [later - earlier for earlier, later in itertools.pairwise(times)]


class EngineClient:
    """Submits requests to an engine and reads their tokens. Made by serving()."""

    def __init__(self, engine: Engine, seed: int = 0) -> None:
        self.engine = engine
        self.adapters_per_pass: list[int] = []
        self._vocab_size = engine.base.vocab_size
        self._random = Random(seed)
        self._ids = itertools.count()
        self._open: dict[str, TimedAnswer] = {}

    def submit(self, work: Work) -> TimedAnswer:
        prompt = tuple(self._random.choices(range(self._vocab_size), k=work.prompt_tokens))
        sampling = SamplingParams(max_tokens=work.max_tokens, ignore_eos=True)
        request = Request(f"r{next(self._ids)}", prompt, work.adapter_id, sampling)
        answer = TimedAnswer(request.request_id, work, time.perf_counter())
        self._open[request.request_id] = answer
        self.engine.submit(request)
        return answer

    def read(self, timeout: float = _SILENCE_SECONDS) -> list[TimedAnswer]:
        """Wait for the outputs of one pass → the requests it has ended; [] after `timeout`."""
        try:
            outputs = self.engine.outputs.get(timeout=max(0.0, timeout))
        except queue.Empty:
            if timeout >= _SILENCE_SECONDS:
                raise BenchmarkError(f"no token for {timeout:.0f} s") from None
            return []
        now = time.perf_counter()
        adapters = self.engine.metrics()["multilora_adapters_in_batch"]
        self.adapters_per_pass.append(int(adapters))
        return [answer for output in outputs or () if (answer := self._take(output, now)).ended]

    def read_until(self, when: float) -> list[TimedAnswer]:
        """Read up to a moment → the requests that have ended."""
        ended: list[TimedAnswer] = []
        while (left := when - time.perf_counter()) > 0:
            ended += self.read(left)
        return ended

    def finish(self, *answers: TimedAnswer) -> None:
        """Read until all of `answers` have ended."""
        while not all(answer.ended for answer in answers):
            self.read()

    def run(self, work: Work) -> TimedAnswer:
        """One request from beginning to end."""
        answer = self.submit(work)
        self.finish(answer)
        return answer

    def abort(self, *answers: TimedAnswer) -> None:
        for answer in answers:
            answer.aborted = True
            self.engine.abort(answer.request_id)
        self.finish(*answers)

    def _take(self, output: TokenOutput, now: float) -> TimedAnswer:
        answer = self._open[output.request_id]
        if output.token_id is not None:
            answer.times.append(now)
        if output.finish_reason is not None:
            answer.ended = True
            del self._open[output.request_id]
            complete = len(answer.times) == answer.work.max_tokens
            if not complete and not answer.aborted:
                raise BenchmarkError(
                    f"a request for {answer.work} ended after {len(answer.times)} tokens: "
                    f"{output.error or output.finish_reason.value}"
                )
        return answer


@contextmanager
def serving(config: EngineConfig, seed: int = 0) -> Iterator[EngineClient]:
    """An engine that serves, warmed up; closed at the end."""
    engine = Engine(config)
    engine.start()
    try:
        client = EngineClient(engine, seed)
        _check_numbers(engine)
        for prompt_tokens in (1, 16, 64):
            client.run(Work("", prompt_tokens, 8))
        yield client
    finally:
        engine.close()


def engine_config(
    base: Path, adapters: Path, dtype: str, *, room: int, host_room: int
) -> EngineConfig:
    """`room` and `host_room`: how many adapters of one page the device pool and the host hold."""
    page = bytes_per_page(NativeConfig.from_folder(base).sites, getattr(torch, dtype))
    return EngineConfig(
        model_id=str(base),
        adapters_dir=str(adapters),
        dtype=dtype,
        device="cpu",
        adapter_memory=room * page,
        adapter_host_memory=host_room * page,
    )


def _check_numbers(engine: Engine) -> None:
    """Random weights must not overflow: arithmetic on NaN may take another time."""
    sampling = SamplingParams(max_tokens=4, ignore_eos=True, logprobs=1)
    engine.submit(Request("numbers", tuple(range(32)), "", sampling))
    tokens: list[TokenOutput] = []
    while not tokens or tokens[-1].finish_reason is None:
        tokens += engine.outputs.get(timeout=_SILENCE_SECONDS) or ()
    finite = [math.isfinite(output.logprob or 0.0) for output in tokens]
    if tokens[-1].finish_reason is not FinishReason.LENGTH or finite != [True] * 4:
        raise BenchmarkError("the random base model does not compute with finite numbers")

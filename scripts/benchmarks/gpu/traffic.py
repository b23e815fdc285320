"""Batches as the engine makes them: the real scheduler, with adapters that are always there."""

import time
from collections import deque
from dataclasses import dataclass, field, replace

import torch

from multilora.forward.base_model import KVCache
from multilora.forward.runner import InFlight, ModelRunner
from multilora.request import AdapterSet, Request
from multilora.scheduling.batch import Batch, SampledToken
from multilora.scheduling.kv_blocks import BlockAllocator
from multilora.scheduling.scheduler import Scheduler, SchedulerLimits
from multilora_api.sampling import SamplingParams

PREFILL_TOKENS = 2048  # a pass, the engine's default
_FIRST_TOKEN = 2  # 0 and 1 are special in some vocabularies


class EveryAdapter:
    """An AdapterCache: adapter "7" stands in page 7."""

    def acquire(self, adapters: AdapterSet) -> AdapterSet:
        return adapters

    def release(self, key: AdapterSet) -> None: ...

    def pages(self, key: AdapterSet) -> tuple[int, ...]:
        return (int(key.only),)

    def unwanted(self, adapters: AdapterSet) -> None: ...

    def is_resident(self, adapters: AdapterSet) -> bool:
        return True

    def is_kept(self, adapters: AdapterSet) -> bool:
        return False

    def end_token_ids(self, adapters: AdapterSet) -> frozenset[int]:
        return frozenset()

    def shortage(self, adapters: AdapterSet) -> int:
        return 0


@dataclass
class Seconds:
    """Of each step. `schedule` includes postprocess; `step` is everything, and so the time of the
    pass that it waits for, the runner's `depth` - 1 steps back; `tokens` is the size of the pass
    that was launched."""

    schedule: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


class Traffic:
    """`batch` requests of `prompt` random tokens; request i names adapter i % `adapters`."""

    def __init__(
        self, kv: KVCache, vocab_size: int, batch: int, adapters: int, prompt: int, answer: int
    ) -> None:
        self.adapters = adapters
        self.seconds = Seconds()
        self._in_flight: deque[tuple[Batch, InFlight]] = deque()
        self._prompt_tokens = batch * prompt
        self._prompts = 0
        limits = SchedulerLimits(
            max_running=batch + 1,  # and a prompt beside them
            max_batch_prefill_tokens=PREFILL_TOKENS,
            max_total_tokens=prompt + answer + 1,
            eos_token_ids=frozenset(),
        )
        blocks = BlockAllocator(kv.num_blocks, kv.block_size)
        self.scheduler = Scheduler(limits, blocks, EveryAdapter())
        noise = torch.Generator().manual_seed(adapters)
        prompts = torch.randint(_FIRST_TOKEN, vocab_size, (batch, prompt), generator=noise)
        sampling = SamplingParams(max_tokens=answer, ignore_eos=True)
        for index, tokens in enumerate(prompts.tolist()):
            adapter = str(index % adapters) if adapters else ""
            self.scheduler.add(Request(str(index), tuple(tokens), adapter, sampling))

    def skip_prefill(self) -> None:
        """Take the prompts as computed: what stands in the cache makes no difference to time."""
        limits, everything = self.scheduler.limits, self._prompt_tokens
        self.scheduler.limits = replace(limits, max_batch_prefill_tokens=everything)
        self.drop(self.scheduler.schedule())
        self.scheduler.limits = limits

    def add_prompt(self, length: int) -> None:
        """One more request, of the first adapter if there are any; its answer is one token. Its
        first token is its own, or the prefix cache would have the rest."""
        self._prompts += 1
        tokens = (_FIRST_TOKEN + self._prompts, *(_FIRST_TOKEN,) * (length - 1))
        adapter = "0" if self.adapters else ""
        self.scheduler.add(Request("prompt", tokens, adapter, SamplingParams(max_tokens=1)))

    def decode_batch(self) -> Batch:
        """The next pass, not to be run by `step`."""
        return self.scheduler.schedule()

    def drop(self, batch: Batch) -> None:
        """Go on after decode_batch as if it had been run."""
        self.scheduler.postprocess(batch, _fake(batch))

    def warm_up(self, runner: ModelRunner) -> None:
        """As many steps as fill the runner; their time does not count."""
        seconds, self.seconds = self.seconds, Seconds()
        for _ in range(runner.depth):
            self.step(runner)
        self.seconds = seconds

    def step(self, runner: ModelRunner) -> None:
        """As Engine.step: launch a pass, and wait for the oldest one when enough are in flight."""
        start = time.perf_counter()
        batch = self.scheduler.schedule()
        scheduled = time.perf_counter()
        self._in_flight.append((batch, runner.launch(batch)))
        waited = time.perf_counter()
        if len(self._in_flight) >= runner.depth:
            waited = self._postprocess()
        end = time.perf_counter()
        self.seconds.schedule.append(scheduled - start + end - waited)
        self.seconds.step.append(end - start)
        self.seconds.tokens.append(batch.num_tokens)

    def drain(self) -> None:
        """Wait for what is in flight, so that others may use the runner."""
        while self._in_flight:
            self._postprocess()

    def _postprocess(self) -> float:
        """→ when the tokens had come."""
        batch, in_flight = self._in_flight.popleft()
        sampled = in_flight.tokens()
        waited = time.perf_counter()
        self.scheduler.postprocess(batch, sampled)
        return waited


def _fake(batch: Batch) -> list[SampledToken]:
    return [SampledToken(_FIRST_TOKEN) for item in batch.items if item.samples]

"""Continuous batching: which sequences compute how many tokens in the next forward pass.

A pass may be scheduled while others are in flight, before their tokens are known: every sequence is
taken to go on, and the rows of those that turn out to have ended are dropped. The device runs
passes in order. So blocks are free for later passes at once, but published only when the tokens in
them are known; an adapter, which may be replaced between two passes, is held until the last pass
with it has been read.

Laws. Running sequences come first, oldest first; a decode row is always scheduled, unless it has to
wait for a token in flight, as those with a grammar do; prompt tokens share
`max_batch_prefill_tokens` a pass (chunked prefill). KV blocks are short → the youngest running
sequence is preempted and recomputed later, on the adapter version it began with. Waiting sequences
start in the order of FairQueue, and none overtakes one whose turn it is but for want of KV blocks.
One whose adapter is loading, or has no room, or is held back by a reservation of another
(PageReservations) is skipped, never waited on; one that waits longer than its adapter_timeout for a
load ends. The base model never waits for an adapter. Every sequence ends exactly once, with one
TokenOutput that has a finish_reason.
"""

import time
from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from multilora.errors import RequestError, grammar_failed
from multilora.request import BASE_ONLY, FinishReason, PromptToken, Request, TokenOutput
from multilora.scheduling.adapter_cache import AdapterCache, CacheMiss
from multilora.scheduling.batch import Batch, BatchItem, SampledToken, make_batch
from multilora.scheduling.kv_blocks import BlockAllocator, KVBlocks
from multilora.scheduling.sequence import Sequence, SequenceStatus, TokenMatcher
from multilora.scheduling.waiting_queue import WaitingQueue

_FEW = 4  # at most one of so many rows


@dataclass(frozen=True)
class SchedulerLimits:
    """Bounds of one pass, what ends a sequence, and what is fair. Filled by the engine.

    `patience` is how many passes an adapter lacks room before it gets a reservation; `quantum` is
    how many tokens each adapter earns in a round.
    """

    max_running: int
    max_batch_prefill_tokens: int
    max_total_tokens: int
    eos_token_ids: frozenset[int]
    patience: int = 32
    quantum: int = 256


class Scheduler:
    """Owns every live Sequence; used by the engine thread only."""

    def __init__(
        self,
        limits: SchedulerLimits,
        blocks: BlockAllocator,
        adapters: AdapterCache,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.blocks = blocks
        self.adapters = adapters
        self._waiting = WaitingQueue(adapters, limits.quantum, limits.patience, clock)
        self.running: list[Sequence] = []  # by arrival
        self.preemptions = 0
        self._held = KVBlocks(blocks)
        self._sequences: dict[str, Sequence] = {}
        self._arrivals = 0
        self._clock = clock
        self._outputs: list[TokenOutput] = []

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def waiting(self) -> list[Sequence]:
        return list(self._waiting)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def cached_tokens(self) -> int:
        return self._held.cached_tokens

    @property
    def next_deadline(self) -> float | None:
        return self._waiting.next_deadline

    def counts(self) -> dict[str, tuple[int, int]]:
        """adapter id → how many of its sequences run and wait; the base model is not listed."""
        counts: dict[str, tuple[int, int]] = {}
        for adapters, number in self._waiting.counts().items():
            for adapter_id, _ in adapters:
                running, waiting = counts.get(adapter_id, (0, 0))
                counts[adapter_id] = running, waiting + number
        for sequence in self.running:
            for adapter_id, _ in sequence.request.adapters:
                running, waiting = counts.get(adapter_id, (0, 0))
                counts[adapter_id] = running + 1, waiting
        return counts

    def add(self, request: Request, matcher: TokenMatcher | None = None) -> None:
        """`matcher` is that of its grammar."""
        self._arrivals += 1
        sequence = Sequence(request, arrival=self._arrivals, matcher=matcher)
        self._sequences[request.request_id] = sequence
        self._waiting.add(sequence)

    def abort(self, request_id: str, error: RequestError | None = None) -> None:
        """End a request now, as cancelled or with `error`; unknown or ended ids are ignored."""
        if sequence := self._sequences.get(request_id):
            self._abort(sequence, error)

    def abort_adapter(self, adapter_id: str, error: RequestError, running: bool) -> None:
        """End the requests of an adapter that never ran with `error`, and the others if told so."""
        for sequence in self.waiting + self.running:
            if sequence.request.adapter_id == adapter_id and (running or not sequence.admitted):
                self.abort(sequence.request.request_id, error)

    def schedule(self) -> Batch:
        """Pick the next pass. Sequences in the batch hold their blocks and adapter pages.

        A pass that is not empty is in flight from now on, until `postprocess` or `fail`. When more
        than a few rows have to wait for tokens in flight it is empty, so that all wait: passes for
        the others alone would cost more time than a device that idles for a moment.
        """
        for sequence, error in self._waiting.overdue():
            self.abort(sequence.request.request_id, error)
        if sum(s.awaits_tokens for s in self.running) * _FEW > len(self.running):
            return make_batch([], {})
        budget = self.limits.max_batch_prefill_tokens
        preemptions = self.preemptions
        items: list[BatchItem] = []
        for sequence in list(self.running):
            if sequence.status is not SequenceStatus.RUNNING:
                continue
            item = self._continue(sequence, budget)
            if item:
                items.append(item)
                budget -= _prefill_cost(item)
        candidates = self._waiting.candidates(self.running)
        if preemptions == self.preemptions:
            self._admit(candidates, items, budget)
        keys = {item.adapters for item in items} - {BASE_ONLY}
        batch = make_batch(items, {key: self.adapters.pages(key) for key in keys})
        for item in items:
            item.sequence.num_computed_tokens = item.end
            item.sequence.passes_in_flight += 1
        return batch

    def postprocess(
        self,
        batch: Batch,
        sampled: list[SampledToken],
        prompts: list[tuple[PromptToken, ...]] | None = None,
    ) -> None:
        """Record the oldest pass in flight, which was computed; `sampled` has one entry per item
        with `.samples`, in order, and `prompts` one per item with `.scored`."""
        self._land(batch)
        tokens, scored = iter(sampled), iter(prompts or ())
        for item in batch.items:
            sequence, token = item.sequence, next(tokens) if item.samples else None
            prompt = next(scored) if item.scored else ()
            if sequence.status is SequenceStatus.RUNNING:
                self._held.publish(sequence, item.end)
            if sequence.status is SequenceStatus.FINISHED:
                continue
            if prompt:
                self._tell_prompt(item, prompt)
            if token:
                self._append(sequence, token)
            elif item.num_output_tokens == sequence.request.sampling.max_tokens == 0:
                self._end_at_prompt(sequence)

    def fail(self, batch: Batch, error: RequestError) -> None:
        """A pass in flight was not computed, or not rightly: its requests end with `error`."""
        self._land(batch)
        for item in batch.items:
            if item.sequence.status is not SequenceStatus.FINISHED:
                self._abort(item.sequence, error)

    def take_outputs(self) -> list[TokenOutput]:
        """Outputs not handed over yet."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def _continue(self, sequence: Sequence, budget: int) -> BatchItem | None:
        if sequence.awaits_tokens or sequence.is_complete(self.limits.max_total_tokens):
            return None
        count = sequence.num_uncomputed_tokens
        if count > 1:
            count = min(count, budget)
        if count == 0:
            return None
        while not self._held.extend(sequence, count):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return None
        return BatchItem.next(sequence, count)

    def _admit(self, candidates: Iterator[Sequence], items: list[BatchItem], budget: int) -> None:
        while budget and len(self.running) < self.limits.max_running:
            sequence = next(candidates, None)
            if sequence is None:
                return
            if sequence.passes_in_flight:  # of before it was preempted: they may bring a token
                continue
            try:
                found = sequence.adapters or self._waiting.acquire(sequence)
            except RequestError as error:
                self.abort(sequence.request.request_id, error)
                continue
            if isinstance(found, CacheMiss):
                continue
            sequence.adapters = found
            if not self._held.take(sequence):
                if not sequence.admitted:
                    self._release_adapter(sequence)
                return
            self._start(sequence)
            item = BatchItem.next(sequence, min(sequence.num_uncomputed_tokens, budget))
            items.append(item)
            budget -= _prefill_cost(item)

    def _start(self, sequence: Sequence) -> None:
        if not sequence.admitted:
            sequence.own_end_ids = self.adapters.end_token_ids(sequence.request.adapters)
            sequence.queue_time = max(0.0, self._clock() - sequence.request.arrived_at)
        self._waiting.take(sequence)
        sequence.status = SequenceStatus.RUNNING
        insort(self.running, sequence, key=_arrival)

    def _preempt(self, sequence: Sequence) -> None:
        """Its blocks are given back, its adapter is not: it goes on with the same version."""
        self.running.remove(sequence)
        self._held.drop(sequence)
        sequence.status = SequenceStatus.WAITING
        self._waiting.add(sequence)
        self.preemptions += 1

    def _append(self, sequence: Sequence, token: SampledToken) -> None:
        limits = self.limits
        reason = sequence.append(token.token_id, limits.eos_token_ids, limits.max_total_tokens)
        if sequence.matcher and sequence.matcher.error:
            self.abort(sequence.request.request_id, grammar_failed(sequence.matcher.error))
            return
        if reason:
            self._finish(sequence)
        name, queue_time = sequence.request.request_id, sequence.queue_time
        self._outputs.append(TokenOutput(name, *token, reason, queue_time=queue_time))

    def _abort(self, sequence: Sequence, error: RequestError | None) -> None:
        reason = FinishReason.ERROR if error else FinishReason.CANCELLED
        name = sequence.request.request_id
        self._finish(sequence)
        self._outputs.append(TokenOutput(name, None, finish_reason=reason, error=error))

    def _tell_prompt(self, item: BatchItem, tokens: tuple[PromptToken, ...]) -> None:
        sequence = item.sequence
        sequence.num_scored_tokens = item.scored.stop
        self._outputs.append(TokenOutput(sequence.request.request_id, None, prompt=tokens))

    def _end_at_prompt(self, sequence: Sequence) -> None:
        """Its max_tokens are 0."""
        self._finish(sequence)
        name, queue_time = sequence.request.request_id, sequence.queue_time
        reason = FinishReason.LENGTH
        output = TokenOutput(name, None, finish_reason=reason, queue_time=queue_time)
        self._outputs.append(output)

    def _finish(self, sequence: Sequence) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
            self._held.drop(sequence)
        else:
            self._waiting.remove(sequence)
        self._release_adapter(sequence)
        sequence.status = SequenceStatus.FINISHED
        del self._sequences[sequence.request.request_id]

    def _land(self, batch: Batch) -> None:
        """The pass is not in flight any more."""
        for item in batch.items:
            item.sequence.passes_in_flight -= 1
            if item.sequence.status is SequenceStatus.FINISHED:
                self._release_adapter(item.sequence)

    def _release_adapter(self, sequence: Sequence) -> None:
        if sequence.passes_in_flight:
            return  # until they have landed
        if sequence.adapters:
            self.adapters.release(sequence.adapters)
        sequence.adapters = BASE_ONLY


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival


def _prefill_cost(item: BatchItem) -> int:
    return item.num_new_tokens if item.num_new_tokens > 1 else 0

"""Continuous batching: which sequences compute how many tokens in the next forward pass.

Laws. Running sequences come first, oldest first; a decode row is always scheduled; prompt tokens
share `max_batch_prefill_tokens` a pass (chunked prefill). KV blocks are short → the youngest
running sequence is preempted and recomputed later. A waiting sequence whose adapter is loading or
has no room is skipped, never waited on; when one has been skipped `patience` times for room, later
arrivals on other adapters wait behind it until it got its turn. The base model never waits for an
adapter. Every sequence ends exactly once, with one TokenOutput that has a finish_reason.
"""

from bisect import insort
from dataclasses import dataclass

from multilora.adapter_gate import AdapterGate, NotReady
from multilora.batch import Batch, BatchItem, SampledToken, make_batch
from multilora.block_allocator import BlockAllocator, prefix_digests
from multilora.errors import RequestError
from multilora.request import FinishReason, Request, TokenOutput
from multilora.sequence import Sequence, SequenceStatus


@dataclass(frozen=True)
class SchedulerLimits:
    """Bounds of one pass, and what ends a sequence. Filled by the engine."""

    max_running: int
    max_batch_prefill_tokens: int
    max_total_tokens: int
    eos_token_ids: frozenset[int]
    patience: int = 32


class Scheduler:
    """Owns every live Sequence; used by the engine thread only."""

    def __init__(
        self, limits: SchedulerLimits, blocks: BlockAllocator, adapters: AdapterGate
    ) -> None:
        self.limits = limits
        self.blocks = blocks
        self.adapters = adapters
        self.waiting: list[Sequence] = []  # by arrival
        self.running: list[Sequence] = []  # by arrival
        self.preemptions = 0
        self.cached_tokens = 0
        self._sequences: dict[str, Sequence] = {}
        self._arrivals = 0
        self._digests: dict[str, list[bytes]] = {}  # request_id → digests of published blocks
        self._skips: dict[str, int] = {}  # request_id → passes without room for its adapter
        self._outputs: list[TokenOutput] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, request: Request) -> None:
        self._arrivals += 1
        sequence = Sequence(request, arrival=self._arrivals)
        self._sequences[request.request_id] = sequence
        self.waiting.append(sequence)

    def abort(self, request_id: str, error: RequestError | None = None) -> None:
        """End a request now, as cancelled or with `error`; unknown or ended ids are ignored."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return
        reason = FinishReason.ERROR if error else FinishReason.CANCELLED
        self._finish(sequence)
        self._outputs.append(TokenOutput(request_id, None, finish_reason=reason, error=error))

    def schedule(self) -> Batch:
        """Pick the next pass. Sequences in the batch hold their blocks and adapter pages."""
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
        if preemptions == self.preemptions:
            self._admit(items, budget)
        keys = {item.sequence.adapter_key for item in items} - {""}
        return make_batch(items, {key: self.adapters.pages(key) for key in keys})

    def postprocess(self, batch: Batch, sampled: list[SampledToken]) -> list[TokenOutput]:
        """Record a computed pass; `sampled` has one entry per item with `.samples`, in order.

        Returns those tokens and whatever else ended since the last call.
        """
        tokens = iter(sampled)
        for item in batch.items:
            samples = item.samples
            item.sequence.num_computed_tokens += item.num_new_tokens
            self._publish_full_blocks(item.sequence)
            if samples:
                self._append(item.sequence, next(tokens))
        return self.take_outputs()

    def take_outputs(self) -> list[TokenOutput]:
        """Outputs not handed over yet."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def _continue(self, sequence: Sequence, budget: int) -> BatchItem | None:
        count = sequence.num_uncomputed_tokens
        if count > 1:
            count = min(count, budget)
        if count == 0:
            return None
        missing = self.blocks.blocks_for(sequence.num_computed_tokens + count) - len(
            sequence.block_table
        )
        while (blocks := self.blocks.allocate(missing)) is None:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return None
        sequence.block_table += blocks
        return BatchItem(sequence, count)

    def _admit(self, items: list[BatchItem], budget: int) -> None:
        behind_starved = False
        for sequence in list(self.waiting):
            if budget == 0 or len(self.running) >= self.limits.max_running:
                return
            request = sequence.request
            if behind_starved and request.adapter_id:
                continue
            ready = self._acquire(sequence)
            if ready is NotReady.NO_ROOM:
                skips = self._skips.get(request.request_id, 0) + 1
                self._skips[request.request_id] = skips
                behind_starved |= skips > self.limits.patience
            if not isinstance(ready, str):
                continue
            if not self._take_blocks(sequence, ready):
                return
            self._start(sequence)
            item = BatchItem(sequence, min(sequence.num_uncomputed_tokens, budget))
            items.append(item)
            budget -= _prefill_cost(item)

    def _acquire(self, sequence: Sequence) -> str | NotReady | None:
        """The adapter key; None when the adapter failed and the sequence has ended."""
        request = sequence.request
        if not request.adapter_id:
            return ""
        try:
            return self.adapters.acquire(request.adapter_id)
        except RequestError as error:
            self.abort(request.request_id, error)
            return None

    def _take_blocks(self, sequence: Sequence, key: str) -> bool:
        """Blocks for all known tokens, cached ones first; on False nothing is held."""
        size = self.blocks.block_size
        known = len(sequence.token_ids)
        digests = list(prefix_digests(key, sequence.token_ids[: known - 1], size))
        cached = self.blocks.take_prefix(digests)
        fresh = self.blocks.allocate(self.blocks.blocks_for(known) - len(cached))
        if fresh is None:
            self.blocks.free(cached)
            if key:
                self.adapters.release(key)
            return False
        sequence.adapter_key = key
        sequence.block_table = cached + fresh
        sequence.num_computed_tokens = len(cached) * size
        self.cached_tokens += sequence.num_computed_tokens
        self._digests[sequence.request.request_id] = digests[: len(cached)]
        return True

    def _start(self, sequence: Sequence) -> None:
        sequence.status = SequenceStatus.RUNNING
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_arrival)
        self._skips.pop(sequence.request.request_id, None)

    def _preempt(self, sequence: Sequence) -> None:
        self._drop(sequence)
        sequence.status = SequenceStatus.WAITING
        insort(self.waiting, sequence, key=_arrival)
        self.preemptions += 1

    def _publish_full_blocks(self, sequence: Sequence) -> None:
        digests = self._digests[sequence.request.request_id]
        size = self.blocks.block_size
        done = len(digests) * size
        tokens = sequence.token_ids[done : sequence.num_computed_tokens]
        start = digests[-1] if digests else None
        for digest in prefix_digests(sequence.adapter_key, tokens, size, start):
            self.blocks.publish(sequence.block_table[len(digests)], digest)
            digests.append(digest)

    def _append(self, sequence: Sequence, token: SampledToken) -> None:
        sequence.token_ids.append(token.token_id)
        sampling = sequence.request.sampling
        reason = None
        if token.token_id in self.limits.eos_token_ids and not sampling.ignore_eos:
            reason = FinishReason.STOP
        elif (
            sequence.num_output_tokens >= sampling.max_tokens
            or len(sequence.token_ids) >= self.limits.max_total_tokens
        ):
            reason = FinishReason.LENGTH
        if reason:
            self._finish(sequence)
        self._outputs.append(
            TokenOutput(
                sequence.request.request_id,
                token.token_id,
                token.logprob,
                token.top_logprobs,
                reason,
            )
        )

    def _finish(self, sequence: Sequence) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            self._drop(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.status = SequenceStatus.FINISHED
        self._skips.pop(sequence.request.request_id, None)
        del self._sequences[sequence.request.request_id]

    def _drop(self, sequence: Sequence) -> None:
        """Give back what a running sequence holds."""
        self.running.remove(sequence)
        self.blocks.free(sequence.block_table)
        if sequence.adapter_key:
            self.adapters.release(sequence.adapter_key)
        sequence.block_table = []
        sequence.num_computed_tokens = 0
        sequence.adapter_key = ""
        self._digests.pop(sequence.request.request_id, None)


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival


def _prefill_cost(item: BatchItem) -> int:
    return item.num_new_tokens if item.num_new_tokens > 1 else 0

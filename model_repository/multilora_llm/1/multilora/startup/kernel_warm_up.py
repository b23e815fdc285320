"""Passes of every kind, run once at start, so that no kernel is compiled while requests wait.

OpenAI Triton compiles a kernel at its first launch with a combination of constants, which takes a
second. Launchers choose constants by the size of a batch and by its adapters: hence batches with
numbers of rows from one to the most, in powers of two, each without adapters, with one, and with as
many as there can be. The passes that are captured have run before, so no pass is replayed here.
"""

import logging
import time
from array import array
from collections.abc import Iterator

from multilora.forward.graphs import GraphLimits
from multilora.forward.runner import ModelRunner
from multilora.request import AdapterSet, Request
from multilora.scheduling.batch import Batch, BatchItem, make_batch
from multilora.scheduling.sequence import Sequence
from multilora_api.sampling import SamplingParams

_LOG = logging.getLogger(__name__)
_SAMPLING = SamplingParams(max_tokens=1, temperature=1.0, seed=0)


def warm_up(runner: ModelRunner, limits: GraphLimits, max_prefill_tokens: int) -> None:
    """Run the batches. Only before the first request: the content of KV block 0 is lost."""
    start = time.monotonic()
    most_pages = min(limits.pages_per_adapter, runner.adapters.num_pages)
    limits = limits._replace(pages_per_adapter=most_pages)
    for batch in warm_up_batches(limits, max_prefill_tokens, runner.kv.block_size):
        # No replay: all adapters share the same pages, which exceeds the bounds of the graphs.
        runner.launch(batch, replay=False).tokens()
    _LOG.info("compiled the kernels in %.1f s", time.monotonic() - start)


def warm_up_batches(
    limits: GraphLimits, max_prefill_tokens: int, block_size: int
) -> Iterator[Batch]:
    """All sequences share KV block 0, all adapters the first pages."""
    most = min(max_prefill_tokens + limits.rows, limits.rows * limits.context)
    for rows in sorted({*(1 << power for power in range(most.bit_length())), most}):
        crowd = min(rows, limits.rows)
        yield _batch(rows, 1, (), limits.context, block_size)
        yield _batch(rows, 1, (0,), limits.context, block_size)
        for count in {crowd, max(1, crowd // 8)}:
            pages = tuple(range(limits.pages_per_adapter))
            yield _batch(rows, count, pages, limits.context, block_size)


def _batch(
    rows: int, adapters: int, pages: tuple[int, ...], context: int, block_size: int
) -> Batch:
    """A batch of `rows` rows, with `adapters` adapters if there are `pages`.

    One sequence for each adapter, or as many as take so many rows: their last tokens of `context`,
    or without adapters their first, as attention has a kernel of its own for these.
    """
    count, tokens = max(adapters, -(-rows // context)), (0,) * context
    items: list[BatchItem] = []
    for index in range(count):
        length = (index + 1) * rows // count - index * rows // count
        start = context - length if pages else 0
        sequence = Sequence(Request(str(index), tokens[: start + length], "", _SAMPLING), index)
        sequence.adapters = AdapterSet.of(str(index * adapters // count) if pages else "")
        sequence.num_computed_tokens = start
        sequence.block_table = array("i", [0]) * -(-context // block_size)
        items.append(BatchItem.next(sequence, length))
    return make_batch(items, {item.adapters: pages for item in items})

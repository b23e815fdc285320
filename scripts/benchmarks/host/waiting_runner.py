"""A runner whose device is a clock: passes take the time they took on a GPU, and compute nothing.

What the host does for a pass (arrays, tables of segments, sampling inputs, one buffer) is done as
for a GPU, but for the launches. `install` puts it into the engine's place for the real one.
"""

import time
from collections.abc import Sequence

from benchmarks.host.times import pass_seconds
from multilora.forward.runner import ModelRunner
from multilora.forward.sampling_input import add_sampling_tensors
from multilora.forward.staging import StagingBuffer
from multilora.forward.step_input import batch_segments, step_arrays
from multilora.request import PromptToken
from multilora.scheduling.batch import Batch, BatchItem, SampledToken
from multilora.startup import build
from multilora_kernels.segments import segment_tables

_TOKEN_ID = 72  # some letter, whatever the tokenizer


class WaitingPass:
    """See InFlight. `end` is that of time.monotonic()."""

    def __init__(self, items: Sequence[BatchItem], end: float) -> None:
        self._items = items
        self._end = end

    def tokens(self) -> list[SampledToken]:
        time.sleep(max(0.0, self._end - time.monotonic()))
        return [SampledToken(_TOKEN_ID)] * len(self._items)

    def prompts(self) -> list[tuple[PromptToken, ...]]:
        """None: nobody here asks for them."""
        return []


class WaitingRunner(ModelRunner):
    """Passes follow each other; two may be in flight, as on a GPU."""

    _free_at = 0.0

    def launch(self, batch: Batch, replay: bool = True) -> WaitingPass:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.depth = 2
        arrays = step_arrays(batch, self.kv.block_size)
        staging = StagingBuffer(self.device)
        for array in (*arrays.fields, *segment_tables(batch_segments(batch), arrays.num_rows)[:3]):
            staging.add(array)
        items = [item for item in batch.items if item.samples]
        vocab_size, eos_token_ids = self.model.base.vocab_size, self.eos_token_ids
        self._add_late_tokens(arrays, staging)
        add_sampling_tensors(items, staging, vocab_size, eos_token_ids, self._last)
        staging.send()
        self._last.rows = {item.sequence: row for row, item in enumerate(items)}
        prompts = sum(item.num_new_tokens for item in batch.items if item.num_new_tokens > 1)
        start = max(self._free_at, time.monotonic())
        self._free_at = start + pass_seconds(arrays.num_rows - prompts, prompts)
        return WaitingPass(items, self._free_at)


def install() -> None:
    """Before the engine is built."""
    build.ModelRunner = WaitingRunner

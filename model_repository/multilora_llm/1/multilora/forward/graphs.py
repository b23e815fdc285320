"""DecodeGraphs: decode passes captured as CUDA graphs, so that a step costs one launch.

One graph per batch size of `sizes` and family (with LoRA, without); a batch takes the smallest
that holds it. All share one memory pool and one static input buffer, and are captured from the
largest down, so that the smaller ones fit into memory that is there already.
"""

import functools
import logging
from bisect import bisect_left
from collections.abc import Callable

import torch

from multilora.forward.captured_pass import (
    CapturedPass,
    DecodeState,
    GraphLimits,
    Replay,
    static_bytes,
)
from multilora.forward.decoder import Llama
from multilora.forward.kv_cache import KVCache
from multilora.forward.step_input import ForwardArrays
from multilora.lora.adapter_pages import AdapterPages
from multilora.lora.plan import DEFAULT_PLAN, LoRAPlan, fastest_plan

_LOG = logging.getLogger(__name__)
_SPARE_BYTES = 1 << 16  # of the static buffer, for what the sampler needs
_TRIED = (16, 64)  # up to so many rows a plan is measured of its own, and one for more


def graph_sizes(rows: int) -> tuple[int, ...]:
    """Numbers of rows to capture, ascending: at most 1/8 of a replayed pass is padding from 64
    rows on, and below that rows cost little beside the weights."""
    sizes = {1, 2, 4, *range(8, min(rows, 64) + 1, 8), *range(80, min(rows, 256) + 1, 16)}
    sizes |= set(range(288, rows + 1, 32))
    return tuple(sorted(size for size in sizes | {rows} if size <= rows))


class DecodeGraphs:
    """Nothing is captured before `capture`. `limits.rows` is the largest batch that replays."""

    def __init__(
        self,
        model: Llama,
        kv: KVCache,
        adapters: AdapterPages,
        limits: GraphLimits,
        device: torch.device,
        pool_pages: int | None = None,
    ) -> None:
        """`pool_pages`: make room for a pool of so many, where `adapters` is a trial one."""
        pool_pages = pool_pages or adapters.num_pages
        size = static_bytes(limits, kv, pool_pages) + _SPARE_BYTES
        static = torch.zeros(size, dtype=torch.uint8, device=device)
        logits = torch.empty(limits.rows, model.base.vocab_size, device=device)
        self.state = DecodeState(model, kv, adapters, limits, pool_pages, static, logits)
        self._passes: dict[tuple[int, bool], CapturedPass] = {}
        self._sizes: tuple[int, ...] = ()
        self._on_gpu = device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._on_gpu else None
        self._stream = _capture_stream(device) if self._on_gpu else None
        self.plans: dict[int, LoRAPlan] = {}  # by rows, filled by capture

    def capture(
        self, sizes: tuple[int, ...] | None = None, *, plan: LoRAPlan | None = None
    ) -> None:
        """Capture both families of `sizes` (graph_sizes of the limit). Without a `plan` the
        fastest is measured, on a GPU."""
        wanted = graph_sizes(self.state.limits.rows) if sizes is None else tuple(sorted(sizes))
        for done, rows in enumerate(reversed(wanted)):
            # The family that no plan touches comes first: from then on some graph holds the pool.
            self._add(rows, False, DEFAULT_PLAN)
            self.plans[rows] = plan or self._plan(rows, wanted)
            self._add(rows, True, self.plans[rows])
            if done % 8 == 7 or done + 1 == len(wanted):
                _LOG.info("captured decode for %d of %d batch sizes", done + 1, len(wanted))
        self._sizes = wanted

    def find(self, arrays: ForwardArrays) -> CapturedPass | None:
        """The pass to replay, None when the batch is no decode pass or too large."""
        batch = arrays.batch
        rows = arrays.num_rows
        if len(arrays.last_token_indices) != rows or not self._sizes or rows > self._sizes[-1]:
            return None
        return self._passes[self._sizes[bisect_left(self._sizes, rows)], bool(batch.spans)]

    def _add(self, rows: int, with_lora: bool, plan: LoRAPlan) -> None:
        captured = CapturedPass(self.state, rows, with_lora)
        captured.capture(self._capture, plan)
        self._passes[rows, with_lora] = captured

    def _plan(self, rows: int, sizes: tuple[int, ...]) -> LoRAPlan:
        """Measured at the largest size of each class of sizes, and kept for the others of it."""
        if not self._on_gpu:
            return DEFAULT_PLAN
        above = [size for size in sizes if size > rows and _class(size) == _class(rows)]
        if above:
            return self.plans[above[-1]]
        trial = CapturedPass(self.state, rows, with_lora=True)

        def prepare(plan: LoRAPlan) -> Replay:
            return trial.capture(self._capture, plan)

        best = fastest_plan(prepare, trial.load_trial)
        _LOG.info("decode of %d rows and fewer: %s", rows, best)
        return best

    def _capture(self, run: Callable[[], object]) -> Replay:
        stream = self._stream
        if stream is None:
            return run
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles what is new, and fills caches
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # What other threads do on the device meanwhile (adapters that load) is no concern of it.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
        ):
            run()
        return graph.replay


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all, trials too: cuBLAS keeps work space for each stream that it has seen."""
    return torch.cuda.Stream(device)


def _class(rows: int) -> int:
    return bisect_left(_TRIED, rows)

"""The memory probe: measures what a base model needs of a GPU beside its pools, once at start.

The largest batch that the scheduler may make runs on trial pools of the smallest size, and the
largest of the passes that will be replayed are captured on these pools. Then everything is freed,
and the pools are sized by the numbers alone (see memory_plan).
"""

import gc
from array import array
from typing import Any, NamedTuple, Protocol

import torch

from multilora.base_model.config import NativeConfig
from multilora.base_model.sites import BaseConfig, short_names
from multilora.config import EngineConfig
from multilora.errors import StartupError
from multilora.forward.base_model import BaseModel, KVCache
from multilora.forward.graphs import MOST_MIXED_ROWS, GraphLimits, PassGraphs, buckets
from multilora.forward.runner import ModelRunner
from multilora.lora.rank_pages import RankPagePool, bytes_per_page, copy_bytes
from multilora.request import Request
from multilora.scheduling.batch import Batch, BatchItem, make_batch
from multilora.scheduling.sequence import Sequence
from multilora.startup.memory_plan import GpuMemory, PoolUnits, quantised_lines, size_text
from multilora_api.sampling import MAX_LOGPROBS, PARAMETERS, SamplingParams
from multilora_kernels.segments import PAGE_RANK


class Reading(NamedTuple):
    """Bytes of a GPU."""

    total: int
    free: int
    reserved: int  # by torch
    peak: int  # the most that torch has reserved since the last reset

    @property
    def elsewhere(self) -> int:
        """What other processes and CUDA itself hold."""
        return self.total - self.free - self.reserved


class Meter(Protocol):
    """How the memory of a GPU is read; tests put numbers of their own here."""

    def settle(self) -> None:
        """Wait until the GPU is idle, and free the memory that torch holds without using it."""
        ...

    def reset(self) -> None:
        """Begin a new peak."""
        ...

    def read(self) -> Reading: ...


class CudaMeter:
    """The Meter of a real GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def settle(self) -> None:
        torch.cuda.synchronize(self._device)
        gc.collect()
        torch.cuda.empty_cache()

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def read(self) -> Reading:
        free, total = torch.cuda.mem_get_info(self._device)
        reserved = torch.cuda.memory_reserved(self._device)
        return Reading(total, free, reserved, torch.cuda.max_memory_reserved(self._device))


def _costly_sampling() -> SamplingParams:
    """Every filter and penalty is on at once, so that the sampler takes the most memory."""
    values: dict[str, Any] = {"max_tokens": 1, "seed": 0}
    values |= dict.fromkeys(("logprobs", "prompt_logprobs"), MAX_LOGPROBS)
    for parameter in PARAMETERS.values():
        if parameter.kind == "number" and parameter.range:
            values[parameter.name] = parameter.range.other_than(parameter.default)
    return SamplingParams(**values)


_SAMPLING = _costly_sampling()


def _base_line(base: BaseConfig, dtype: str) -> str:
    """What computes the base model, and where adapters can act."""
    by = "this server's decoder" if isinstance(base, NativeConfig) else "its class in transformers"
    places = ", ".join(short_names(base.sites))
    return f"{base.architecture} in {dtype}, computed by {by}; adapters can act on {places}"


class Profile(NamedTuple):
    """What is measured: a base model, and the settings with which it will be served."""

    model: BaseModel
    config: EngineConfig
    max_total_tokens: int
    dtype: torch.dtype
    device: torch.device

    @property
    def units(self) -> PoolUnits:
        return pool_units(self.config, self.model.base, self.max_total_tokens, self.dtype)

    @property
    def lines(self) -> tuple[str, ...]:
        """For the log, about the base model."""
        dtype = str(self.dtype).removeprefix("torch.")
        return _base_line(self.model.base, dtype), *quantised_lines(self.model.quantised)

    @property
    def graph_limits(self) -> GraphLimits:
        rows, pages = self.config.max_running_requests, self.units.pages_of_largest
        mixed = 0
        if self.config.cuda_graphs == "full":
            mixed = min(MOST_MIXED_ROWS, rows + self.config.max_batch_prefill_tokens)
        return GraphLimits(rows, self.max_total_tokens, pages, mixed)


def pool_units(
    config: EngineConfig, base: BaseConfig, max_total_tokens: int, dtype: torch.dtype
) -> PoolUnits:
    return PoolUnits(
        block_bytes=KVCache.bytes_per_block(base, config.kv_block_size, dtype),
        block_tokens=config.kv_block_size,
        max_total_tokens=max_total_tokens,
        page_bytes=bytes_per_page(base.sites, dtype),
        page_ranks=PAGE_RANK,
        max_lora_rank=config.max_lora_rank,
        optional=base.adapted,
        optional_bytes=bytes_per_page({*base.sites} - {*base.layer_sites}, dtype),
    )


def measure(profile: Profile, meter: Meter) -> GpuMemory:
    """Run and capture the largest passes. StartupError when the GPU does not hold them."""
    meter.settle()
    weights = meter.read()
    try:
        activations, elsewhere = _forward_bytes(profile, meter)
        graphs = _graph_bytes(profile, meter) if profile.config.cuda_graphs != "off" else 0
    except torch.OutOfMemoryError as error:
        raise StartupError(_no_room(weights, error)) from None
    finally:
        meter.settle()
    units = profile.units
    copy = copy_bytes(profile.model.base.sites, units.pages_of_largest)  # it goes on beside passes
    return GpuMemory(
        total=weights.total,
        elsewhere=elsewhere,
        weights=weights.reserved,
        activations=activations + copy,
        graphs=graphs,
        utilization=profile.config.gpu_memory_utilization,
    )


def _forward_bytes(profile: Profile, meter: Meter) -> tuple[int, int]:
    """(bytes of the largest pass, bytes used elsewhere once its kernels are loaded)

    What stays reserved after the pass is work space of cuBLAS, which has one per thread. It counts
    twice: the engine thread will need one, too, and is not the thread of this pass.
    """
    kv, adapters = _trial_pools(profile)
    runner = ModelRunner(profile.model, kv, adapters, (0,), profile.device, profile.dtype)
    meter.settle()
    before = meter.read().reserved
    meter.reset()
    runner.launch(largest_batch(profile)).tokens()
    peak = meter.read().peak
    meter.settle()
    after = meter.read()
    return peak - before + max(after.reserved - before, 0), after.elsewhere


def _graph_bytes(profile: Profile, meter: Meter) -> int:
    """Bytes of all graphs, estimated from two sizes.

    Graphs share the memory of the largest size, and each has some memory of its own besides, which
    the second size shows. The number of pages of the pool is not known yet, so the most that the
    GPU could hold bounds what the updates of a pass take.
    """
    kv, adapters = _trial_pools(profile)
    limits = profile.graph_limits
    sizes = buckets(limits)
    meter.settle()
    before = meter.read().free
    most_pages = max(meter.read().total // profile.units.page_bytes, adapters.num_pages)
    graphs = PassGraphs(profile.model, kv, adapters, limits, profile.device, most_pages)
    graphs.capture(sizes[-1:])
    meter.settle()
    largest = before - meter.read().free
    if len(sizes) == 1:
        return max(largest, 0)
    graphs.capture(sizes[-2:-1])
    meter.settle()
    each = max(before - meter.read().free - largest, 0)
    return max(largest, 0) + each * (len(sizes) - 1)


def _trial_pools(profile: Profile) -> tuple[KVCache, RankPagePool]:
    """One KV block that all sequences share, and the pages of one adapter of the largest rank."""
    base, dtype, device = profile.model.base, profile.dtype, profile.device
    kv = KVCache(base, 1, profile.config.kv_block_size, dtype, device)
    return kv, RankPagePool(base.sites, profile.units.pages_of_largest, dtype, device)


def largest_batch(profile: Profile) -> Batch:
    """As many sequences, new tokens and context as one pass may have, and prompts to score.

    Each sequence has an adapter of its own in the tables; all share the same block and pages.
    """
    config, total = profile.config, profile.max_total_tokens
    token_ids, blocks = [0] * total, array("i", [0]) * profile.units.least_blocks
    pages = tuple(range(profile.units.pages_of_largest))
    prefill = config.max_batch_prefill_tokens
    items: list[BatchItem] = []
    for index in range(config.max_running_requests):
        more = min(prefill, total - 1)
        prefill -= more
        prompt = (0,) * (total if more else 1)
        request = Request(str(index), prompt, str(index), _SAMPLING)
        sequence = Sequence(request, index, request.adapters)
        sequence.token_ids, sequence.block_table = token_ids, blocks
        sequence.num_computed_tokens = total - 1 - more
        items.append(BatchItem.next(sequence, 1 + more))
    return make_batch(items, {item.adapters: pages for item in items})


def _no_room(weights: Reading, error: torch.OutOfMemoryError) -> str:
    return (
        f"beside {size_text(weights.reserved)} of base model and {size_text(weights.elsewhere)} "
        f"used elsewhere the GPU's {size_text(weights.total)} do not hold one forward pass "
        f"({str(error).splitlines()[0]}); lower --max-batch-prefill-tokens, --max-total-tokens or "
        "--max-lora-rank, set --cuda-graphs decode or off, or choose a smaller base model"
    )

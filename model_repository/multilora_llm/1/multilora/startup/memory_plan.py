"""How much memory the KV cache and the adapter pool get, and where the rest of it went. Pure.

On a GPU, in bytes:

    left     = utilization * total - elsewhere - weights - activations - graphs
    adapters = adapter_memory, or a fifth of `left`, or more for one adapter of the largest rank
    KV cache = kv_cache_memory, or what remains, at least one sequence of max_total_tokens

The fifth shrinks, down to that one adapter, where the KV cache would come short otherwise. More
memory never gives less of either.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from multilora.base_model.weights import QuantisedSites
from multilora.errors import StartupError

HOST_POOL = 1 << 30  # bytes of each pool on a CPU unless they are given
ADAPTER_PART = 5  # one part in so many of what is left on a GPU
_MOST_UNITS = 1 << 20  # blocks or pages that `auto` takes: each costs the host some memory too
_NOTICEABLE = 1 << 30  # bytes of other users of a GPU that are worth a hint


@dataclass(frozen=True)
class PoolUnits:
    """What the pools are made of, and the most that one sequence and one adapter take of them.

    `optional_bytes` of a page are for the places `optional`."""

    block_bytes: int
    block_tokens: int
    max_total_tokens: int
    page_bytes: int
    page_ranks: int
    max_lora_rank: int
    optional: tuple[str, ...] = ()
    optional_bytes: int = 0

    @property
    def least_blocks(self) -> int:
        return -(-self.max_total_tokens // self.block_tokens)

    @property
    def pages_of_largest(self) -> int:
        return -(-self.max_lora_rank // self.page_ranks)


@dataclass(frozen=True)
class PoolSettings:
    """Bytes that the user gives, 0 = auto."""

    kv_cache_memory: int
    adapter_memory: int


@dataclass(frozen=True)
class GpuMemory:
    """Bytes, filled by memory_probe. `elsewhere` is what other processes and CUDA itself hold,
    `activations` what a forward pass needs beside weights and pools."""

    total: int
    elsewhere: int
    weights: int
    activations: int
    graphs: int
    utilization: float

    @property
    def budget(self) -> int:
        return round(self.total * self.utilization)

    @property
    def left(self) -> int:
        return self.budget - self.elsewhere - self.weights - self.activations - self.graphs


@dataclass(frozen=True)
class MemoryPlan:
    """`lines` say what went where, for the log."""

    kv_blocks: int
    adapter_pages: int
    lines: tuple[str, ...]


def plan_host(units: PoolUnits, settings: PoolSettings) -> MemoryPlan:
    """On a CPU, whose memory is taken only as far as it is used. Raises StartupError."""
    kv, adapters = settings.kv_cache_memory or HOST_POOL, settings.adapter_memory or HOST_POOL
    _check_sizes(units, kv, adapters)
    blocks, pages = kv // units.block_bytes, adapters // units.page_bytes
    return MemoryPlan(blocks, pages, ("memory:", *_pool_lines(units, blocks, pages)))


def plan_gpu(gpu: GpuMemory, units: PoolUnits, settings: PoolSettings) -> MemoryPlan:
    """Raises StartupError, with the bytes that are short and the settings that help."""
    _check_sizes(units, settings.kv_cache_memory, settings.adapter_memory)
    least_kv = settings.kv_cache_memory or units.least_blocks * units.block_bytes
    least_adapters = settings.adapter_memory or units.pages_of_largest * units.page_bytes
    short = least_kv + least_adapters - gpu.left
    if short > 0:
        raise StartupError(_too_small(gpu, units, settings, short))
    adapters = settings.adapter_memory
    if not adapters:
        share = max(gpu.left // ADAPTER_PART, least_adapters)
        adapters = min(share, gpu.left - least_kv, _MOST_UNITS * units.page_bytes)
    kv = settings.kv_cache_memory
    if not kv:
        kv = min(gpu.left - adapters, max(_MOST_UNITS, units.least_blocks) * units.block_bytes)
    blocks, pages = kv // units.block_bytes, adapters // units.page_bytes
    unused = gpu.left - blocks * units.block_bytes - pages * units.page_bytes
    lines = (
        f"GPU memory {size_text(gpu.total)}, of which --gpu-memory-utilization "
        f"{gpu.utilization:g} allows {size_text(gpu.budget)}:",
        _line("used elsewhere", gpu.elsewhere, "other processes, CUDA and its kernels"),
        _line("base model", gpu.weights),
        _line("forward pass", gpu.activations, "measured with the largest batch"),
        _line("CUDA graphs", gpu.graphs, "" if gpu.graphs else "none"),
        *_pool_lines(units, blocks, pages),
        _line("unused", unused),
    )
    return MemoryPlan(blocks, pages, lines)


def quantised_lines(quantised: QuantisedSites | None) -> tuple[str, ...]:
    """In which forms the linear layers of a base model are computed, and what that saves."""
    if not quantised:
        return ()
    total, dtype = quantised.forms.total(), quantised.dtype
    forms = ", ".join(f"{count} of {total} as {form}" for form, count in quantised.forms.items())
    size, dense = size_text(quantised.num_bytes), size_text(quantised.dense_bytes)
    reason = f" ({quantised.reason})" if dtype in quantised.forms and quantised.reason else ""
    return (
        f"linear layers, quantised with {quantised.name}: {forms}{reason}; "
        f"{size}, all in {dtype} {dense}",
    )


def size_text(size: int) -> str:
    """3.25 GiB, 12.0 MiB or 87 bytes."""
    if abs(size) >= 1000 << 20:
        return f"{size / (1 << 30):.2f} GiB"
    return f"{size / (1 << 20):.1f} MiB" if abs(size) >= 1 << 20 else f"{size} bytes"


def _check_sizes(units: PoolUnits, kv_cache_memory: int, adapter_memory: int) -> None:
    """The sizes themselves, where they are given, whatever memory there is."""
    blocks = kv_cache_memory // units.block_bytes
    if kv_cache_memory and blocks < units.least_blocks:
        raise StartupError(
            f"kv_cache_memory {kv_cache_memory} holds {blocks * units.block_tokens} tokens but "
            f"max_total_tokens is {units.max_total_tokens}; raise --kv-cache-memory to at least "
            f"{units.least_blocks * units.block_bytes} or lower --max-total-tokens"
        )
    if adapter_memory and adapter_memory < units.page_bytes:
        raise StartupError(
            f"adapter_memory {adapter_memory} is less than one page of {units.page_ranks} ranks "
            f"({units.page_bytes} bytes); raise --adapter-memory"
        )


def _pool_lines(units: PoolUnits, blocks: int, pages: int) -> tuple[str, ...]:
    tokens = blocks * units.block_tokens
    adapters = f"{pages} of rank {units.page_ranks} or less"
    if units.pages_of_largest > 1:
        adapters += f", {pages // units.pages_of_largest} of rank {units.max_lora_rank}"
    sequences = f"{tokens // units.max_total_tokens} sequences of {units.max_total_tokens}"
    places = f"for {' and '.join(units.optional)}"
    optional = _line("of them", pages * units.optional_bytes, places)
    return (
        _line("adapters", pages * units.page_bytes, adapters),
        *([optional] if units.optional else []),
        _line("KV cache", blocks * units.block_bytes, f"{tokens} tokens, {sequences}"),
    )


def _line(name: str, size: int, what: str = "") -> str:
    return f"  {name:<16}{size_text(size):>12}  {what}".rstrip()


def _too_small(gpu: GpuMemory, units: PoolUnits, settings: PoolSettings, short: int) -> str:
    kv = f"--kv-cache-memory is {size_text(settings.kv_cache_memory)}"
    if not settings.kv_cache_memory:
        least = size_text(units.least_blocks * units.block_bytes)
        kv = f"the KV cache of one sequence of {units.max_total_tokens} tokens needs {least}"
    adapters = f"--adapter-memory is {size_text(settings.adapter_memory)}"
    if not settings.adapter_memory:
        least = size_text(units.pages_of_largest * units.page_bytes)
        adapters = f"one adapter of rank {units.max_lora_rank} needs {least}"
    return (
        f"GPU memory is short by {short} bytes ({size_text(short)}): --gpu-memory-utilization "
        f"{gpu.utilization:g} of {size_text(gpu.total)} less {size_text(gpu.elsewhere)} used "
        f"elsewhere, {size_text(gpu.weights)} of base model, {size_text(gpu.activations)} for a "
        f"forward pass and {size_text(gpu.graphs)} of CUDA graphs leaves {size_text(gpu.left)}, "
        f"but {kv} and {adapters}; {', or '.join(_remedies(gpu, units, settings, short))}"
    )


def _remedies(
    gpu: GpuMemory, units: PoolUnits, settings: PoolSettings, short: int
) -> Iterator[str]:
    """Each may be enough, or may not."""
    permille = -(-(gpu.budget + short) * 1000 // gpu.total)
    if permille <= 1000:
        yield f"raise --gpu-memory-utilization to {permille / 1000:g}"
    if gpu.elsewhere >= _NOTICEABLE:
        yield "end other processes on the GPU"
    yield "lower " + ("--kv-cache-memory" if settings.kv_cache_memory else "--max-total-tokens")
    if settings.adapter_memory:
        yield "lower --adapter-memory"
    elif units.pages_of_largest > 1:
        yield "lower --max-lora-rank"
    if gpu.activations:
        yield "lower --max-batch-prefill-tokens"
    if gpu.graphs:
        yield "set --cuda-graphs decode or off"
    yield "choose a smaller base model"

"""Everything the engine is made of, loaded and sized once at start from its configuration."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from multilora.adapter_checkpoint import Adapter, read_adapter
from multilora.adapter_pages import AdapterPages
from multilora.adapter_source import AdapterSource, parse_lora_adapters, sources_in
from multilora.adapter_store import AdapterStore
from multilora.base_config import BaseConfig
from multilora.block_allocator import BlockAllocator
from multilora.config import DEMO, EngineConfig
from multilora.errors import StartupError
from multilora.kv_cache import KVCache
from multilora.llama import load_llama
from multilora.model_runner import ModelRunner
from multilora.scheduler import Scheduler, SchedulerLimits
from multilora.sources import adapter_folder, base_folder

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineParts:
    """Filled by load_parts; the engine thread owns what is mutable in here."""

    base: BaseConfig
    model_folder: Path
    max_input_tokens: int
    max_total_tokens: int
    store: AdapterStore
    scheduler: Scheduler
    runner: ModelRunner

    def gauges(self) -> dict[str, float]:
        """Current values of the metrics that some part already keeps."""
        scheduler, slots = self.scheduler, self.store.slots
        blocks = scheduler.blocks
        return {
            "multilora_cached_prompt_tokens_total": scheduler.cached_tokens,
            "multilora_preemptions_total": scheduler.preemptions,
            "multilora_adapter_loads_total": self.store.loads,
            "multilora_adapter_evictions_total": slots.evictions,
            "multilora_running_requests": len(scheduler.running),
            "multilora_waiting_requests": len(scheduler.waiting),
            "multilora_kv_blocks_used": blocks.num_blocks - blocks.num_free,
            "multilora_kv_blocks": blocks.num_blocks,
            "multilora_adapter_pages_used": slots.num_pages - slots.num_free,
            "multilora_adapter_pages": slots.num_pages,
            "multilora_adapter_references": slots.num_references,
        }


def load_parts(config: EngineConfig, wake: Callable[[], None]) -> EngineParts:
    """Load base model and adapters; raises StartupError. `wake` stirs the engine thread."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = _device(config.device)
    folder = DEMO / "base" if not config.model_id else base_folder(config.model_id, config.revision)
    base = BaseConfig.from_folder(folder)
    max_input, max_total = config.token_limits(base.max_position_embeddings)
    dtype = _dtype(config.dtype, base.dtype, device)
    _LOG.info("loading %s as %s on %s", folder, dtype, device)
    model = load_llama(folder, base, dtype, device)
    kv = _kv_cache(config, base, max_total, dtype, device)
    pool = _adapter_pool(config, base, dtype, device)
    store = _adapter_store(config, base, pool, dtype, wake)
    limits = SchedulerLimits(
        max_running=config.max_running_requests,
        max_batch_prefill_tokens=config.max_batch_prefill_tokens,
        max_total_tokens=max_total,
        eos_token_ids=frozenset(base.eos_token_ids),
    )
    scheduler = Scheduler(limits, BlockAllocator(kv.num_blocks, kv.block_size), store)
    runner = ModelRunner(model, kv, pool, base.eos_token_ids, device, dtype)
    return EngineParts(base, folder, max_input, max_total, store, scheduler, runner)


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise StartupError("device cuda: torch sees no GPU; check the driver, or use --device cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _dtype(name: str, checkpoint: str, device: torch.device) -> torch.dtype:
    """`auto` is the checkpoint's own on a GPU and float32 on a CPU, where half precision saves
    memory but is fast on few machines."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else checkpoint
    return getattr(torch, name)


def _kv_cache(
    config: EngineConfig, base: BaseConfig, max_total: int, dtype: torch.dtype, device: torch.device
) -> KVCache:
    size = config.kv_block_size
    bytes_per_block = KVCache.bytes_per_block(base, size, dtype)
    num_blocks = config.kv_cache_memory // bytes_per_block
    needed = -(-max_total // size)
    if num_blocks < needed:
        raise StartupError(
            f"kv_cache_memory {config.kv_cache_memory} holds {num_blocks * size} tokens but "
            f"max_total_tokens is {max_total}; raise --kv-cache-memory to at least "
            f"{needed * bytes_per_block} or lower --max-total-tokens"
        )
    return KVCache(base, num_blocks, size, dtype, device)


def _adapter_pool(
    config: EngineConfig, base: BaseConfig, dtype: torch.dtype, device: torch.device
) -> AdapterPages:
    bytes_per_page = AdapterPages.bytes_per_page(base, dtype)
    num_pages = config.adapter_memory // bytes_per_page
    if num_pages < 1:
        raise StartupError(
            f"adapter_memory {config.adapter_memory} is less than one page of 16 ranks "
            f"({bytes_per_page} bytes); raise --adapter-memory"
        )
    return AdapterPages(base, num_pages, dtype, device)


def _adapter_store(
    config: EngineConfig,
    base: BaseConfig,
    pool: AdapterPages,
    dtype: torch.dtype,
    wake: Callable[[], None],
) -> AdapterStore:
    def read(source: AdapterSource) -> Adapter:
        folder = adapter_folder(source)
        return read_adapter(folder, source.adapter_id, base, dtype, config.max_lora_rank)

    sources = parse_lora_adapters(config.lora_adapters)
    if not config.model_id and not sources:
        sources = sources_in(DEMO / "adapters")
    store = AdapterStore(sources, read, pool, config.adapter_host_memory, wake)
    store.warm_up(lambda adapter_id: _LOG.info("loading adapter %s", adapter_id))
    return store

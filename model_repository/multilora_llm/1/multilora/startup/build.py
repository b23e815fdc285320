"""Everything the engine is made of, loaded and sized once at start from its configuration."""

import contextlib
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from multilora.adapters.admin.admin import AdapterAdmin
from multilora.adapters.checkpoint.adapter import Adapter, AdapterReader
from multilora.adapters.checkpoint.checks import AdapterChecks, adapted_places
from multilora.adapters.memory.manager import AdapterManager
from multilora.adapters.merging.merger import AdapterMerger
from multilora.adapters.naming.catalog import AdapterCatalog
from multilora.adapters.naming.flag import registered
from multilora.adapters.naming.folders import AdapterFolders
from multilora.adapters.naming.source import AdapterSource, about_adapter
from multilora.adapters.naming.watch import AdapterWatch
from multilora.base_model.sites import TABLES, BaseConfig, short_names
from multilora.config import DEMO, EngineConfig
from multilora.download.folder import adapter_folder
from multilora.download.transfer import DownloadLimits
from multilora.errors import ErrorCode, RequestError, StartupError, invalid
from multilora.forward.base_model import KVCache, load_base_model, read_base
from multilora.forward.graphs import PassGraphs
from multilora.forward.runner import ModelRunner
from multilora.grammar.cache import GrammarCache
from multilora.grammar.compiler import GrammarCompiler
from multilora.lora.rank_pages import RankPagePool
from multilora.scheduling.kv_blocks import BlockAllocator
from multilora.scheduling.scheduler import Scheduler, SchedulerLimits
from multilora.startup.base_folder import BaseText, base_folder, tried_text
from multilora.startup.device import choose_device, choose_dtype, num_threads
from multilora.startup.first_pass import check_first_pass
from multilora.startup.kernel_warm_up import warm_up
from multilora.startup.memory_plan import MemoryPlan, PoolSettings, plan_gpu, plan_host
from multilora.startup.memory_probe import CudaMeter, Meter, Profile, measure
from multilora_api.admin import Origin
from multilora_text.errors import RenderingBusy
from multilora_text.renderer import TemplateRenderer
from multilora_text.tokenizer import Tokenizer

Post = Callable[[Callable[[], None]], None]  # runs a function on the engine thread
_LOG = logging.getLogger(__name__)
_MEMORY_LOG = logging.getLogger("multilora.memory")  # the launcher shows its lines


@dataclass(frozen=True)
class EngineParts:
    """Filled by load_parts; the engine thread owns what is mutable in here."""

    base: BaseConfig
    model_folder: Path
    text: BaseText
    max_input_tokens: int
    max_total_tokens: int
    adapters: AdapterManager
    catalog: AdapterCatalog
    watch: AdapterWatch | None
    admin: AdapterAdmin
    scheduler: Scheduler
    runner: ModelRunner
    grammars: GrammarCache

    def deadlines(self) -> list[float]:
        """When the first of those who wait has waited for too long (time.monotonic())."""
        ends = (self.scheduler.next_deadline, self.admin.pending.next_deadline)
        return [end for end in ends if end is not None]

    def gauges(self) -> dict[str, float]:
        """Current values of the metrics that some part already keeps."""
        scheduler, adapters = self.scheduler, self.adapters
        device, allocator = adapters.device, adapters.device.allocator
        blocks = scheduler.blocks
        return {
            "multilora_cached_prompt_tokens_total": scheduler.cached_tokens,
            "multilora_preemptions_total": scheduler.preemptions,
            "multilora_adapter_loads_total": device.loads,
            "multilora_adapter_hits_total": device.hits,
            "multilora_adapter_misses_total": device.misses,
            "multilora_adapter_reads_total": adapters.reads,
            "multilora_adapter_read_failures_total": adapters.failures,
            "multilora_adapter_read_seconds_total": adapters.read_seconds,
            "multilora_adapters_known": self.catalog.num_known,
            "multilora_adapters_loading": adapters.loading,
            "multilora_adapters_resident": len(allocator),
            "multilora_adapter_host_bytes_used": adapters.host.used_bytes,
            "multilora_adapter_host_bytes": adapters.host.max_bytes,
            "multilora_adapter_evictions_total": allocator.evictions,
            "multilora_running_requests": len(scheduler.running),
            "multilora_waiting_requests": scheduler.num_waiting,
            "multilora_kv_blocks_used": blocks.num_blocks - blocks.num_free,
            "multilora_kv_blocks": blocks.num_blocks,
            "multilora_adapter_pages_used": allocator.num_pages - allocator.num_free,
            "multilora_adapter_pages": allocator.num_pages,
            "multilora_adapter_references": allocator.num_references,
        }


@dataclass(frozen=True)
class AdapterParts:
    """`folders` is the adapters directory, if there is one."""

    catalog: AdapterCatalog
    folders: AdapterFolders | None
    manager: AdapterManager
    merger: AdapterMerger
    checks: AdapterChecks

    def warm_up(self) -> None:
        """Read and pin the registered adapters, and fill the pool while it has room.

        Raises StartupError for the first of them, in their order, that cannot be used.
        """
        sources = self.catalog.registered
        outcomes: dict[str, RequestError | None] = {}
        num_loaded = 0

        def loaded(adapter_id: str, error: RequestError | None) -> None:
            nonlocal num_loaded
            outcomes[adapter_id] = error
            if not error:
                num_loaded += 1
                _LOG.info("loaded %d of %d adapters", num_loaded, len(sources))

        for source in sources:
            self.manager.pin(source, True)
            self.manager.load(source, partial(loaded, source.adapter_id))
        for source in sources:  # several are read at once, and end in any order
            while source.adapter_id not in outcomes:
                self.manager.poll(wait=True)
            if error := outcomes[source.adapter_id]:
                raise StartupError(error.message)
        self.manager.finish_copies()


def load_parts(config: EngineConfig, post: Post, renderer: TemplateRenderer) -> EngineParts:
    """Load base model and adapters; raises StartupError. `renderer` tries their chat templates."""
    device = choose_device(config.device)
    # On a CPU the engine thread will have them, see compute_alone.
    torch.set_num_threads(1 if device.type == "cpu" else num_threads(config.threads))
    folder = base_folder(config)
    base = _with_places(config, read_base(folder, config.model_impl), folder)
    max_input, max_total = config.token_limits(base.max_position_embeddings)
    dtype = choose_dtype(config.dtype, base.dtype, device)
    _LOG.info("loading %s as %s on %s", folder, dtype, device)
    model = load_base_model(folder, base, dtype, device, max_total, config.quantize)
    check_first_pass(model, folder, dtype, device)
    text = tried_text(config, folder, renderer)
    profile = Profile(model, config, max_total, dtype, device)
    kv, pages, graphs = _pools(profile)
    wake = partial(post, lambda: None)
    adapters = make_adapters(config, base, folder, dtype, pages, text.tokenizer, renderer, wake)
    scheduler = _scheduler(config, text.end_token_ids, kv, max_total, adapters.manager)
    admin = _admin(config, adapters, scheduler, post)
    watch = None
    if adapters.folders:
        watch = AdapterWatch(
            adapters.folders, admin.folders_changed, in_memory=admin.names_of_directory
        )
    adapters.warm_up()  # under watch: files that change meanwhile are read again
    runner = ModelRunner(model, kv, pages, text.end_token_ids, device, dtype, graphs)
    _warm_up(runner, profile)
    return EngineParts(
        base=base,
        model_folder=folder,
        text=text,
        max_input_tokens=max_input,
        max_total_tokens=max_total,
        catalog=adapters.catalog,
        adapters=adapters.manager,
        watch=watch,
        admin=admin,
        scheduler=scheduler,
        runner=runner,
        grammars=_grammars(base, text),
    )


def _grammars(base: BaseConfig, text: BaseText) -> GrammarCache:
    tokenizer = text.tokenizer.to_json if text.tokenizer else None
    compiler = GrammarCompiler(tokenizer, base.vocab_size, text.end_token_ids)
    return GrammarCache(compiler, base.vocab_size)


def _scheduler(
    config: EngineConfig,
    end_token_ids: Iterable[int],
    kv: KVCache,
    max_total: int,
    manager: AdapterManager,
) -> Scheduler:
    limits = SchedulerLimits(
        max_running=config.max_running_requests,
        max_batch_prefill_tokens=config.max_batch_prefill_tokens,
        max_total_tokens=max_total,
        eos_token_ids=frozenset(end_token_ids),
    )
    return Scheduler(limits, BlockAllocator(kv.num_blocks, kv.block_size), manager)


def _admin(
    config: EngineConfig, adapters: AdapterParts, scheduler: Scheduler, post: Post
) -> AdapterAdmin:
    return AdapterAdmin(
        catalog=adapters.catalog,
        manager=adapters.manager,
        scheduler=scheduler,
        post=post,
        folders=adapters.folders,
        merger=adapters.merger,
        refusal=adapters.checks.refusal,
        switched_on=config.adapter_admin == "on",
        key=config.admin_key,
    )


class _Pools(NamedTuple):
    kv: KVCache
    pages: RankPagePool
    graphs: PassGraphs | None  # captured on the two


def _pools(profile: Profile) -> _Pools:
    """Sized by the settings, and on a GPU by what is left of its memory. Raises StartupError."""
    meter = _meter(profile.device)
    plan = _plan(profile, meter)
    for line in (*profile.lines, *plan.lines):
        _MEMORY_LOG.info("%s", line)
    model, config, _, dtype, device = profile
    try:
        kv = KVCache(model.base, plan.kv_blocks, config.kv_block_size, dtype, device)
        pages = RankPagePool(model.base.sites, plan.adapter_pages, dtype, device)
        graphs = None
        if meter and config.cuda_graphs != "off":
            graphs = PassGraphs(model, kv, pages, profile.graph_limits, device)
            graphs.capture()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise StartupError(_too_large(device, error)) from None
    return _Pools(kv, pages, graphs)


def _warm_up(runner: ModelRunner, profile: Profile) -> None:
    if profile.device.type != "cuda":
        return
    try:
        warm_up(runner, profile.graph_limits, profile.config.max_batch_prefill_tokens)
    except torch.OutOfMemoryError as error:
        raise StartupError(_too_large(profile.device, error)) from None


def _meter(device: torch.device) -> Meter | None:
    """None on a CPU: nothing is measured there, and nothing captured."""
    return CudaMeter(device) if device.type == "cuda" else None


def _plan(profile: Profile, meter: Meter | None) -> MemoryPlan:
    config = profile.config
    settings = PoolSettings(config.kv_cache_memory, config.adapter_memory)
    if not meter:
        return plan_host(profile.units, settings)
    _LOG.info("measuring the memory of the largest forward pass")
    return plan_gpu(measure(profile, meter), profile.units, settings)


def _too_large(device: torch.device, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), "out of memory")
    help_ = "lower --kv-cache-memory or --adapter-memory"
    if device.type == "cuda":
        help_ = f"another process may have taken some: lower --gpu-memory-utilization, or {help_}"
    return f"KV cache and adapter pool do not fit on {device} ({reason}); {help_}"


def make_adapters(
    config: EngineConfig,
    base: BaseConfig,
    model_folder: Path,
    dtype: torch.dtype,
    pages: RankPagePool,
    tokenizer: Tokenizer | None,
    renderer: TemplateRenderer,
    wake: Callable[[], None],
) -> AdapterParts:
    """Everything but the reading of the registered adapters; raises StartupError.

    `pages` is the device pool; `wake` stirs the engine thread when an adapter has been read.
    """
    folders = _folders(config)
    catalog = AdapterCatalog(_registered(config), folders, config.adapter_allow)
    manager = AdapterManager(
        _adapter_reader(config, base, model_folder, dtype, tokenizer, renderer, folders),
        pages,
        config.adapter_host_memory,
        wake,
        config.adapter_loads,
    )
    limits = _limits(config)
    merger = AdapterMerger(
        catalog,
        manager.states,
        base.sites,
        config.max_lora_rank,
        tokenizer,
        lambda source: adapter_folder(source, limits),
        model_folder,
        base.optional,
    )
    checks = AdapterChecks(base.sites, config.max_lora_rank, model_folder, base.optional)
    return AdapterParts(catalog, folders, manager, merger, checks)


def _limits(config: EngineConfig) -> DownloadLimits:
    return DownloadLimits(config.adapter_max_size, config.adapter_download_timeout)


def _folders(config: EngineConfig) -> AdapterFolders | None:
    return AdapterFolders(Path(config.adapters_dir)) if config.adapters_dir else None


def _registered(config: EngineConfig) -> list[AdapterSource]:
    demo = None if config.model_id else DEMO / "adapters"
    return registered(config.lora_adapters, _folders(config), demo)


def _with_places(config: EngineConfig, base: BaseConfig, model_folder: Path) -> BaseConfig:
    """The base model with the optional places that `lora_target_modules` names; `auto` looks at the
    registered adapters, of which it downloads what is elsewhere. Raises StartupError."""
    names = set(config.lora_target_modules.replace(",", " ").split())
    known = {"auto", "all", *short_names(base.with_places(base.optional).sites)}
    if unknown := names - known:
        raise StartupError(
            f"lora_target_modules: the base model has no module {min(unknown)!r}; there are "
            f"{', '.join(sorted(known))} (--lora-target-modules)"
        )

    def places(source: AdapterSource) -> frozenset[str]:
        with contextlib.suppress(RequestError):  # what is wrong comes out when it is read
            folder = adapter_folder(source, _limits(config))
            return adapted_places(folder, base, config.max_lora_rank, model_folder)
        return frozenset()

    if "auto" in names:
        with ThreadPoolExecutor(config.adapter_loads) as threads:
            names = names.union(*threads.map(places, _registered(config)))
    return base.with_places({*TABLES, *names} if "all" in names else names)


def _adapter_reader(
    config: EngineConfig,
    base: BaseConfig,
    model_folder: Path,
    dtype: torch.dtype,
    tokenizer: Tokenizer | None,
    renderer: TemplateRenderer,
    folders: AdapterFolders | None,
) -> Callable[[AdapterSource], Adapter]:
    """What a loader thread does with a source."""
    limits = _limits(config)
    rank, optional = config.max_lora_rank, base.optional
    reader = AdapterReader(base.sites, dtype, rank, tokenizer, model_folder, optional)

    def read(source: AdapterSource) -> Adapter:
        if folders and source.origin is Origin.DIRECTORY and not folders.find(source.adapter_id):
            message = (
                f"the folder of adapter {source.adapter_id!r} has been removed; put it back or "
                "name another"
            )
            raise RequestError(ErrorCode.NOT_FOUND, message)
        with about_adapter(source.adapter_id):
            folder = adapter_folder(source, limits)
            adapter = reader.read(folder, source.adapter_id)
            _check_templates(adapter, renderer)
            return adapter

    return read


def _check_templates(adapter: Adapter, renderer: TemplateRenderer) -> None:
    try:
        for template in adapter.text.templates:
            renderer.check(template)
    except RenderingBusy as error:
        raise RequestError(ErrorCode.UNAVAILABLE, str(error)) from None
    except ValueError as error:
        raise invalid(f"its chat template {error}; fix or remove it") from None

"""What serves adapters (catalog, manager, merger), made once at start from the configuration."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from multilora.adapters.checkpoint.adapter import Adapter, read_adapter
from multilora.adapters.memory.manager import AdapterManager
from multilora.adapters.merging.merger import AdapterMerger
from multilora.adapters.naming.catalog import AdapterCatalog
from multilora.adapters.naming.flag import localise, parse_lora_adapters, sources_in
from multilora.adapters.naming.folders import AdapterFolders
from multilora.adapters.naming.source import AdapterSource, Origin, about_adapter
from multilora.base_model.config import BaseConfig
from multilora.config import DEMO, EngineConfig
from multilora.download.folder import adapter_folder
from multilora.download.transfer import DownloadLimits
from multilora.errors import ErrorCode, RequestError, StartupError
from multilora.lora.rank_pages import RankPagePool
from multilora_text.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterParts:
    """`folders` is the adapters directory, if there is one."""

    catalog: AdapterCatalog
    folders: AdapterFolders | None
    manager: AdapterManager
    merger: AdapterMerger

    def warm_up(self) -> None:
        """Read and pin the registered adapters, and fill the pool while it has room.

        Raises StartupError for the first one that cannot be used.
        """
        sources = self.catalog.registered
        failures: list[RequestError] = []

        def loaded(error: RequestError | None) -> None:
            if error:
                failures.append(error)
            _LOG.info("loaded %d of %d adapters", len(sources) - self.manager.loading, len(sources))

        for source in sources:
            self.manager.pin(source, True)
            self.manager.load(source, loaded)
        while self.manager.loading and not failures:
            self.manager.poll_loads(wait=True)
        if failures:
            raise StartupError(failures[0].message)
        self.manager.copy(None)


def make_adapters(
    config: EngineConfig,
    base: BaseConfig,
    dtype: torch.dtype,
    pages: RankPagePool,
    tokenizer: Tokenizer | None,
    wake: Callable[[], None],
) -> AdapterParts:
    """Everything but the reading of the registered adapters; raises StartupError.

    `pages` is the device pool; `wake` stirs the engine thread when an adapter has been read.
    """
    folders = AdapterFolders(Path(config.adapters_dir)) if config.adapters_dir else None
    catalog = AdapterCatalog(_registered(config, folders), folders, config.adapter_allow)
    manager = AdapterManager(
        _adapter_reader(config, base, dtype, tokenizer, folders),
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
        lambda source: adapter_folder(source, limits),
    )
    return AdapterParts(catalog, folders, manager, merger)


def _limits(config: EngineConfig) -> DownloadLimits:
    return DownloadLimits(config.adapter_max_size, config.adapter_download_timeout)


def _registered(config: EngineConfig, folders: AdapterFolders | None) -> list[AdapterSource]:
    """LORA_ADAPTERS, where a bare name may be a folder of the adapters directory or of the demo;
    if the demo is served and nothing is named, all of its adapters."""
    demo = AdapterFolders(DEMO / "adapters") if not config.model_id else None
    directories = [directory for directory in (folders, demo) if directory]
    named = localise(parse_lora_adapters(config.lora_adapters), *directories)
    return named if named or not demo else sources_in(DEMO / "adapters")


def _adapter_reader(
    config: EngineConfig,
    base: BaseConfig,
    dtype: torch.dtype,
    tokenizer: Tokenizer | None,
    folders: AdapterFolders | None,
) -> Callable[[AdapterSource], Adapter]:
    """What a loader thread does with a source."""
    limits = _limits(config)

    def read(source: AdapterSource) -> Adapter:
        if folders and source.origin is Origin.DIRECTORY and not folders.find(source.adapter_id):
            message = (
                f"the folder of adapter {source.adapter_id!r} has been removed; put it back or "
                "name another"
            )
            raise RequestError(ErrorCode.NOT_FOUND, message)
        with about_adapter(source.adapter_id):
            folder = adapter_folder(source, limits)
            return read_adapter(
                folder, source.adapter_id, base.sites, dtype, config.max_lora_rank, tokenizer
            )

    return read

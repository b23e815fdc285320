"""Engines on a tiny random base model with six adapters of different ranks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multilora.base_model.config import NativeConfig
from multilora.config import EngineConfig
from multilora.engine import Engine
from support.engine.requests import RANKS, MakeEngine
from support.engine.workshop import MakeShop, Workshop
from support.tiny.base import write_adapter, write_base
from support.tiny.families import make_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    write_base(root / "base")
    for seed, (name, rank) in enumerate(RANKS.items()):
        write_adapter(root / name, seed=seed + 1, rank=rank)
    return root


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> NativeConfig:
    """Of the model that the adapters of make_adapter are for."""
    root = tmp_path_factory.mktemp("base")
    make_model("llama").config.save_pretrained(root)
    return NativeConfig.from_folder(root)


@pytest.fixture
def make_engine(folder: Path) -> Iterator[MakeEngine]:
    engines: list[Engine] = []

    def make(adapters: dict[str, Path] | None = None, **settings: Any) -> Engine:
        paths = adapters or {name: folder / name for name in RANKS}
        listed = ",".join(f"{name}={path}" for name, path in paths.items())
        sizes: dict[str, Any] = {"kv_cache_memory": 1 << 22, "adapter_memory": 1 << 24}
        sizes |= {"threads": 1, **settings}
        sizes.setdefault("model_id", str(folder / "base"))
        config = EngineConfig(lora_adapters=listed, dtype="float32", device="cpu", **sizes)
        engines.append(Engine(config))
        engines[-1].start()
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def make_shop(tmp_path: Path, folder: Path) -> Iterator[MakeShop]:
    """Stores over the adapters "a" to "d" of one page."""
    (tmp_path / "base").symlink_to(folder / "base")
    for seed, name in enumerate("abcd"):
        write_adapter(tmp_path / name, seed, rank=8)
    shops: list[Workshop] = []

    def make(**sizes: int) -> Workshop:
        shops.append(Workshop(tmp_path, **sizes))
        return shops[-1]

    yield make
    for shop in shops:
        shop.gate.set()
        shop.manager.close()

"""The hub's files: from a hub that huggingface_hub asks, or from a web server of plain files."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine.downloads import use_hub, write_adapter
from support.fake.hub import HubServer


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[HubServer]:
    """A store of plain files: they have etags, sizes and ranges."""
    write_adapter(tmp_path / "hub/org/sql")
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def hub(web: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    use_hub(monkeypatch, web.url, cache)
    return web

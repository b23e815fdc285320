"""Adapters fetched from object stores: one that keeps files in memory, or a web server."""

from pathlib import Path

import pytest

from multilora.adapters.naming.source import AdapterSource
from multilora.download.folder import adapter_folder
from multilora.download.transfer import DownloadLimits
from multilora.errors import RequestError
from support.engine.downloads import WEIGHTS, names_in
from support.fake.hub import HubServer

FILES = ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"]
WEIGHTS_PATH = "org/sql/adapter_model.safetensors"
SIZE = len(WEIGHTS)


def url(web: HubServer) -> str:
    return f"{web.url}/org/sql/resolve/main"


def fetch(location: str, max_bytes: int = 1 << 30, seconds: float = 30, name: str = "sql") -> Path:
    return adapter_folder(AdapterSource(name, location), DownloadLimits(max_bytes, seconds))


def refusal(location: str, max_bytes: int = 1 << 30, seconds: float = 30) -> RequestError:
    with pytest.raises(RequestError) as caught:
        fetch(location, max_bytes, seconds)
    return caught.value


def check_whole(folder: Path) -> None:
    assert names_in(folder) == FILES
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS

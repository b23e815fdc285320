"""Catalogs of adapters, and what they say when they refuse."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from multilora.adapters.naming.catalog import AdapterCatalog
from multilora.adapters.naming.flag import parse_lora_adapters
from multilora.adapters.naming.folders import AdapterFolders
from multilora.errors import ErrorCode, RequestError


def catalog_of(
    lora_adapters: str = "", root: Path | None = None, allow: Iterable[str] = ()
) -> AdapterCatalog:
    folders = AdapterFolders(root) if root else None
    return AdapterCatalog(parse_lora_adapters(lora_adapters), folders, allow)


def refusal(call, *arguments: str, code: ErrorCode = ErrorCode.NOT_FOUND) -> str:
    with pytest.raises(RequestError) as caught:
        call(*arguments)
    assert caught.value.code is code
    assert len(caught.value.message) < 800 and caught.value.message.isprintable()
    return caught.value.message

"""Tensors of an administrator's Triton request → AdminCommand."""

from typing import Any

import numpy as np
import pytest

from multilora.adapters.admin.command import AdminCommand
from multilora.errors import ErrorCode, RequestError
from multilora.wire.triton_request import admin_command, is_admin


def text(*values: bytes) -> np.ndarray:
    return np.array([[value] for value in values], dtype=np.object_)


LOAD = {"action": text(b"load"), "adapter_id": text("é".encode())}


def test_every_input_becomes_its_key() -> None:
    assert is_admin(LOAD) and not is_admin({"adapter_id": text(b"a")})
    given = {
        **LOAD, "source": text(b"org/x"), "revision": text(b"v1"), "adapter_token": text(b"hf_x"),
        "adapter_timeout": np.array([[2.5]], dtype=np.float32), "admin_key": text(b"key"),
    }  # fmt: skip
    assert admin_command(given, {"triton_final": True}) == AdminCommand(
        "load", "é", "org/x", "v1", timeout=2.5, adapter_token="hf_x", admin_key="key"
    )
    unload = {"action": text(b"unload"), "adapter_id": text(b"a"), "cancel": np.array([[True]])}
    assert admin_command(unload, {}) == AdminCommand("unload", "a", cancel=True)


@pytest.mark.parametrize(
    ("tensors", "parameters", "reason"),
    [
        ({"adapter_id": text(b"a", b"b")}, {}, "adapter_id has 2 rows"),
        ({"adapter_id": np.array([[b"a", b"b"]], dtype=np.object_)}, {}, "must hold one value"),
        ({"adapter_id": text(b"\xc3(")}, {}, "adapter_id is not valid UTF-8"),
        ({"max_tokens": np.array([[3]])}, {}, "unknown name 'max_tokens' beside an action"),
        ({}, {"cancle": True}, "unknown name 'cancle' beside an action; did you mean cancel"),
        ({}, {"zz": 1}, "known are action, adapter_id, after, source"),
    ],
)
def test_refused(tensors: dict[str, np.ndarray], parameters: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        admin_command({**LOAD, **tensors}, parameters)
    assert caught.value.code is ErrorCode.INVALID_ARG

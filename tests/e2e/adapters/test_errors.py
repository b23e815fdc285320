"""The Triton model `adapters` refuses what it cannot do, by code and with a sentence."""

from typing import Any

import numpy as np
import pytest

from launcher.triton.server import TritonServer
from multilora_client import MultiLoRAClient, NotFound
from support.e2e.adapters import command, refusal
from support.e2e.triton import post


@pytest.mark.parametrize("action", ["info", "load", "unload", "pin", "unpin"])
def test_an_unknown_adapter(server: TritonServer, action: str) -> None:
    status, message = refusal(server, action=action, adapter_id="nobody")
    assert status == "NOT_FOUND"
    assert "'nobody'" in message and message.endswith("[NOT_FOUND]")
    code, answer = post(server, {"action": action, "adapter_id": "nobody"}, model="adapters")
    assert code >= 400 and answer["error"].endswith(message)
    with (
        MultiLoRAClient(server.grpc_address, timeout=60) as client,
        pytest.raises(NotFound, match="'nobody'"),
    ):
        client.adapters.ask(action, adapter_id="nobody")
    code, output, errors = command(server, action, "nobody")
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith("multilora: ") and "'nobody'" in errors


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"action": "fly"}, "one of list, info, load, unload, pin, unpin"),
        ({"action": ""}, "one of list, info, load, unload, pin, unpin"),
        ({"action": "info"}, "adapter_id"),
        ({"action": b"\xff\xfe"}, "action is not valid UTF-8"),
        ({"action": "load", "adapter_id": b"\xc3("}, "adapter_id is not valid UTF-8"),
        ({"action": "load", "adapter_id": "sql", "timeout": -1.0}, "timeout must be"),
        ({"action": "load", "adapter_id": "sql", "timeout": float("nan")}, "timeout must be"),
        ({"action": "load", "adapter_id": "sql", "cancel": 1.5}, "'cancel' data-type is 'FP32'"),
        ({"action": True}, "'action' data-type is 'BOOL'"),
        ({"action": "load", "adapter_id": "x", "source": "/etc"}, "'/etc'"),
        ({"action": "load", "adapter_id": "../x", "source": "acme/slow"}, "'../x'"),
    ],
)
def test_bad_requests(server: TritonServer, inputs: dict[str, Any], message: str) -> None:
    status, text = refusal(server, **inputs)
    assert status in ("INVALID_ARG", "") and message in text


def test_two_actions_in_one_request(server: TritonServer) -> None:
    _, text = refusal(server, action=np.array([[b"list"], [b"list"]], dtype=np.object_))
    assert "batch-size must be <= 1" in text


def test_a_misspelt_input_is_not_ignored(server: TritonServer) -> None:
    body = {"action": "unload", "adapter_id": "sql", "cancle": True}
    code, answer = post(server, body, model="adapters")
    assert code == 400 and "did you mean cancel?" in answer["error"]
    assert post(server, {"action": 5}, model="adapters")[0] in (400, 500)
    assert post(server, {"adapter_id": "sql"}, model="adapters")[0] == 400

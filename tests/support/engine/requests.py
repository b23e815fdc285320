"""Requests to an engine in process, and what comes back."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from multilora.adapters.admin.command import AdminCommand
from multilora.base_model.config import NativeConfig
from multilora.engine import Engine
from multilora.errors import RequestError
from multilora.forward.base_model import KVCache
from multilora.lora.rank_pages import bytes_per_page
from multilora.request import PromptToken, Request, TokenOutput
from multilora_api.sampling import SamplingParams

RANKS = {"a": 4, "b": 8, "c": 16, "d": 24, "e": 40, "f": 64}
MakeEngine = Callable[..., Engine]


def request(
    name: str,
    adapter: str = "",
    length: int = 12,
    prompt: tuple[int, ...] | None = None,
    **sampling: object,
) -> Request:
    start = sum(map(ord, name.rstrip("0123456789")))
    prompt = prompt or tuple((start + 7 * i) % 120 + 4 for i in range(length))
    values = {"max_tokens": 12, "ignore_eos": True} | sampling
    return Request(name, prompt, adapter, SamplingParams(**values))  # type: ignore[arg-type]


def drain(engine: Engine, count: int) -> dict[str, list[TokenOutput]]:
    """Outputs by request until `count` requests have ended."""
    outputs: dict[str, list[TokenOutput]] = {}
    while count:
        batch = engine.outputs.get(timeout=60)
        assert batch is not None
        for output in batch:
            outputs.setdefault(output.request_id, []).append(output)
            count -= output.finish_reason is not None
    return outputs


def run(engine: Engine, *requests: Request) -> dict[str, list[TokenOutput]]:
    """All at once; see drain."""
    for one in requests:
        engine.submit(one)
    return drain(engine, len(requests))


def tokens(outputs: list[TokenOutput]) -> list[int]:
    return [output.token_id for output in outputs if output.token_id is not None]


def prompt_of(outputs: list[TokenOutput]) -> list[PromptToken]:
    """What was said of the prompt."""
    return [token for output in outputs for token in output.prompt]


def assert_all_free(engine: Engine) -> None:
    deadline = time.monotonic() + 5
    names = ("running_requests", "waiting_requests", "kv_blocks_used", "adapter_references")
    left: dict[str, float] = {}
    while time.monotonic() < deadline:
        left = {name: engine.metrics()[f"multilora_{name}"] for name in names}
        if not any(left.values()):
            return
        time.sleep(0.01)
    pytest.fail(f"still held: {left}")


def alone(engine: Engine, requests: list[Request]) -> dict[str, list[int]]:
    """The tokens of each, one after the other."""
    return {one.request_id: tokens(run(engine, one)[one.request_id]) for one in requests}


def page_bytes(folder: Path) -> int:
    return bytes_per_page(NativeConfig.from_folder(folder / "base").sites, torch.float32)


def block_bytes(folder: Path) -> int:
    return KVCache.bytes_per_block(NativeConfig.from_folder(folder / "base"), 16, torch.float32)


def raises_once(
    patch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    error: Exception,
    when: Callable[..., bool] = lambda *_: True,
) -> None:
    """The first call of that method, of those for which `when` holds."""
    real, errors = getattr(owner, name), iter([error])

    def broken(*arguments: Any) -> Any:
        if when(*arguments):
            for each in errors:
                raise each
        return real(*arguments)

    patch.setattr(owner, name, broken)


def ask(engine: Engine, action: str, adapter_id: str = "", timeout: float = 30, **more: Any) -> Any:
    command = AdminCommand(action=action, adapter_id=adapter_id, timeout=timeout, **more)
    return engine.admin.execute(command, 30).result(60)


def entry(engine: Engine, adapter_id: str) -> dict[str, Any]:
    listed = {item["id"]: item for item in ask(engine, "list")["adapters"]}
    return listed[adapter_id]


def refusal(engine: Engine, action: str, adapter_id: str = "", **more: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        ask(engine, action, adapter_id, **more)
    return caught.value

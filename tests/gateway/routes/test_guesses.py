"""What a misspelt adapter may have meant: told only to those who may use it."""

import asyncio
import json
from types import SimpleNamespace
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from starlette.types import Message

from multilora_gateway.errors import not_found, tgi_body
from multilora_gateway.http.access import Access, Caller, admin, inference
from multilora_gateway.http.error_answers import add_handlers
from multilora_gateway.settings import Settings
from support.engine.catalogs import catalog_of, refusal

ACCESS = Access(Settings(api_keys=("open", "mine:jso*,sqlx"), admin_key="root"))
CATALOG = catalog_of("json=/a,jsonl=/b,sql=/c,org/sqlx=/d", allow=["other/*"])


def app() -> FastAPI:
    made = FastAPI()
    made.state.gateway = SimpleNamespace(access=ACCESS)
    add_handlers(made)

    @made.get("/generate/{name:path}")
    async def generate(name: str, caller: Annotated[Caller, Depends(inference)]) -> None:
        raise not_found(refusal(CATALOG.resolve, name))

    @made.get("/adapters/{name:path}", dependencies=[Depends(admin)])
    async def adapters(name: str) -> None:
        raise not_found(refusal(CATALOG.resolve, name))

    return made


def told(path: str, key: str) -> str:
    """The message of the answer, with status 404."""
    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "path": path, "query_string": b"",
        "headers": [(b"authorization", f"Bearer {key}".encode())], "root_path": "",
    }  # fmt: skip
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app()(scope, receive, send))
    assert sent[0]["status"] == 404
    return json.loads(sent[1]["body"])["error"]


@pytest.mark.parametrize("path", ["/generate/jsn", "/adapters/jsn"])
def test_those_who_may_use_all_are_told_all(path: str) -> None:
    for key in ["root"] if "adapters" in path else ["root", "open"]:
        message = told(path, key)
        assert message.startswith("adapter 'jsn' is not known; name it in LORA_ADAPTERS")
        assert message.endswith("; did you mean 'json' or 'jsonl'?")


def test_a_limited_key_is_told_its_own_alone() -> None:
    assert told("/generate/jso", "mine").endswith("; did you mean 'json' or 'jsonl'?")
    for name in ("sqlx", "org/sqly", "sql'; did you mean 'json'?;sql"):
        message = told(f"/generate/{name}", "mine")
        assert "'sql'" not in message and "org/sqlx" not in message
    assert "did you mean" not in told("/generate/sqlx", "mine")


@pytest.mark.parametrize("name", ["jsn", "org/sqly", "sql'; did you mean 'x'?; y"])
def test_a_stream_guesses_nothing(name: str) -> None:
    """It is written where the caller is not known."""
    message = tgi_body(not_found(refusal(CATALOG.resolve, name)))["error"].replace(repr(name), "")
    assert not any(repr(known) in message for known in ("json", "jsonl", "sql", "org/sqlx"))

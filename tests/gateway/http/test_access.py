"""API keys: who may generate, with which adapters, and who may change them."""

from types import SimpleNamespace

import pytest
from fastapi import Depends, FastAPI
from starlette.testclient import TestClient

from multilora_gateway.errors import GatewayError
from multilora_gateway.http.access import Access, inference
from multilora_gateway.http.error_answers import add_handlers
from multilora_gateway.settings import Settings

ACCESS = Access(Settings(api_keys=("open", "team:team/*,sql", "colon:"), admin_key="root"))


def test_merges_are_named_by_keys_that_say_so() -> None:
    access = Access(Settings(api_keys=("wide:*", "m:m*", "merger:merged:*")))
    allowed = [access.caller(f"Bearer {key}").may_use("merged:01") for key in ("wide", "m")]
    assert allowed == [False, False]
    assert access.caller("Bearer merger").may_use("merged:01")
    with pytest.raises(GatewayError, match="send merged_adapters instead"):
        access.caller("Bearer wide").check("merged:01")


@pytest.mark.parametrize("header", [None, "", "open", "Basic open", "Bearer", "Bearer nope"])
def test_no_valid_key(header: str | None) -> None:
    with pytest.raises(GatewayError) as caught:
        ACCESS.caller(header)
    assert caught.value.status == 401
    assert caught.value.headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "open"}, 200),
        ({"x-api-key": "nope"}, 401),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": "nope", "authorization": "Bearer open"}, 200),
        ({"x-api-key": "open", "authorization": "Bearer nope"}, 401),
    ],
)
def test_a_key_in_anthropics_header(headers: dict[str, str], status: int) -> None:
    app = FastAPI()
    app.state.gateway = SimpleNamespace(access=ACCESS)
    app.get("/v1/messages", dependencies=[Depends(inference)])(lambda: None)
    add_handlers(app)
    answer = TestClient(app).get("/v1/messages", headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.json()["type"] == "error"


@pytest.mark.parametrize("key", ["open", "root"])
def test_a_key_without_patterns_may_use_every_adapter(key: str) -> None:
    assert ACCESS.caller(f"bearer {key}").may_use("anything/at/all")


@pytest.mark.parametrize("adapter_id", ["", "sql", "team/a", "team/a/b"])
def test_a_limited_key_may_use_its_own_adapters_and_the_base(adapter_id: str) -> None:
    ACCESS.caller("Bearer team").check(adapter_id)


@pytest.mark.parametrize(
    "adapter_id", ["other", "sql2", "Team/a", "team/../other", "team\\..\\x", "x/team/a"]
)
def test_a_limited_key_may_use_no_other(adapter_id: str) -> None:
    with pytest.raises(GatewayError, match="may not use") as caught:
        ACCESS.caller("Bearer team").check(adapter_id)
    assert caught.value.status == 403


def test_a_key_of_any_characters() -> None:
    header = "Bearer ключ".encode().decode("latin-1")  # as HTTP servers hand it on
    assert Access(Settings(api_keys=("ключ",))).caller(header).may_use("sql")


def test_no_patterns_behind_the_colon_is_the_base_alone() -> None:
    assert not ACCESS.caller("Bearer colon").may_use("sql")


@pytest.mark.parametrize("keys", [("",), (":sql*",), ("good:a*", "")])
@pytest.mark.parametrize("header", [None, "Bearer ", "Basic good", ""])
def test_an_empty_key_is_nobody_s(keys: tuple[str, ...], header: str | None) -> None:
    with pytest.raises(GatewayError) as caught:
        Access(Settings(api_keys=keys)).caller(header)
    assert caught.value.status == 401


def test_without_keys_everybody_generates_and_nobody_administers() -> None:
    access = Access(Settings())
    assert access.caller(None).may_use("sql")
    with pytest.raises(GatewayError, match="--admin-key") as caught:
        access.check_admin("Bearer ")
    assert caught.value.status == 403


def test_only_the_admin_key_administers() -> None:
    ACCESS.check_admin("Bearer root")
    for header in (None, "Bearer open", "Bearer roo"):
        with pytest.raises(GatewayError) as caught:
            ACCESS.check_admin(header)
        assert caught.value.status == 401

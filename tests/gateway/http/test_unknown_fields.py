"""Fields that nobody here knows, at every route: before the gateway's application, without a Triton
server behind it."""

import json
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from multilora_gateway.app import create_app
from multilora_gateway.http import unknown_fields
from multilora_gateway.http.metrics import GatewayMetrics
from multilora_gateway.settings import Settings
from support.gateway.serving import Served, serving

HELLO = [{"role": "user", "content": "hello", "note": 1, "annotations": []}]
TOOL = {"type": "function", "x_tool": 1, "function": {"name": "add", "x_function": {"a": 1}}}
CHAT = {
    "messages": HELLO, "tools": [TOOL, TOOL], "stream": True, "stream_options": {"x_usage": True},
    "response_format": {"type": "json_schema", "x_form": 1, "json_schema": {
        "name": "n", "schema": {"type": "object", "x_kept": 1}, "x_schema": 1}},
    "structured_outputs": {"x_outputs": 1}, "tool_choice": {"function": {"name": "add", "x_": 1}},
    "merged_adapters": {"ids": ["a"], "weights": [1.0], "x_merge": 1}, "x_chat": {"y": [1]},
    "metadata": {"any": 1}, "chat_template_kwargs": {"any": 1}, "logit_bias": {"5": 1},
}  # fmt: skip
OF_CHAT = [
    "x_chat", "merged_adapters.x_merge", "structured_outputs.x_outputs", "response_format.x_form",
    "response_format.json_schema.x_schema", "stream_options.x_usage", "tools.x_tool",
    "tools.function.x_function", "tool_choice.function.x_",
]  # fmt: skip
GENERATE = {
    "inputs": "a", "options": {"use_cache": True, "x_option": 1}, "x_top": 1, "stream": None,
    "parameters": {"max_tokns": 1, "details": None, "x_null": None, "grammar": {
        "type": "json_schema", "value": {"schema": {"x_kept": 1}, "x_named": 1}}},
}  # fmt: skip
OF_GENERATE = ["x_top", "parameters.max_tokns", "parameters.grammar.value.x_named"]
OF_GENERATE += ["options.x_option"]
RESPONSES = {
    "input": HELLO, "tools": [{"type": "function", "name": "add", "x_tool": 1}], "x_top": 1,
    "text": {"format": {"type": "json_schema", "schema": {"x_kept": 1}, "x_form": 1}, "x_text": 1},
    "reasoning": {"x_effort": 1}, "metadata": {"any": 1},
}  # fmt: skip
OF_RESPONSES = ["x_top", "tools.x_tool", "text.format.x_form", "text.x_text", "reasoning.x_effort"]
MESSAGES = {
    "messages": HELLO, "max_tokens": 1, "tool_choice": {"type": "auto", "x_choice": 1}, "x_top": 1,
    "tools": [{"name": "add", "input_schema": {"x_kept": 1}, "x_tool": 1}],
    "output_config": {"format": {"type": "json_schema", "schema": {}, "x_form": 1}, "x_out": 1},
    "thinking": {"type": "disabled", "x_think": 1},
}  # fmt: skip
OF_MESSAGES = [
    "x_top", "tools.x_tool", "tool_choice.x_choice", "output_config.format.x_form",
    "output_config.x_out", "thinking.x_think",
]  # fmt: skip
PROMPT = {"prompt": "a", "x_text": 1, "functions": None}


class Sent(NamedTuple):
    path: str
    body: dict[str, Any]
    ignored: list[str]


ROUTES = [
    Sent("/v1/chat/completions", CHAT, OF_CHAT),
    Sent("/v1/completions", PROMPT, ["x_text"]),
    Sent("/v1/responses", RESPONSES, OF_RESPONSES),
    *(Sent(path, MESSAGES, OF_MESSAGES) for path in ("/v1/messages", "/v1/messages/count_tokens")),
    *(
        Sent(path, GENERATE, OF_GENERATE)
        for path in ("/", "/generate", "/generate_stream", "/invocations", "/tokenize")
    ),
    *(Sent(path, CHAT, OF_CHAT) for path in ("/invocations", "/tokenize")),
    Sent("/tokenize", PROMPT, ["x_text"]),
    Sent("/detokenize", {"tokens": [1], "x": 1}, ["x"]),
    Sent("/invocations", PROMPT, ["x_text"]),
    Sent("/adapters/load", {"adapter_id": "a", "source": None, "x": 1}, ["x"]),
    Sent("/adapters/unload", {"adapter_id": "a", "cancel": None, "x": 1}, ["x"]),
    Sent("/adapters/pin", {"adapter_id": "a", "x": 1}, ["x"]),
    Sent("/adapters/unpin", {"adapter_id": "a", "x": 1}, ["x"]),
    Sent("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "b", "x": 1}, ["x"]),
    Sent("/v1/unload_lora_adapter", {"lora_name": "a", "lora_int_id": 1, "x": 1}, ["x"]),
]
SETTINGS = Settings(triton_url="127.0.0.1:9", admin_key="root")


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    with serving(create_app(SETTINGS, ("*",), GatewayMetrics("")), lifespan="on") as served:
        yield served


@pytest.fixture(scope="module")
def strict() -> Iterator[Served]:
    settings = Settings(triton_url="127.0.0.1:9", admin_key="root", strict_fields=True)
    with serving(create_app(settings, ("*",), GatewayMetrics("")), lifespan="on") as served:
        yield served


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str


def post(served: Served, path: str, body: Any, *headers: str) -> Answer:
    raw = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close",
        "Content-Type: application/json", "Authorization: Bearer root",
        f"Content-Length: {len(raw)}", *headers,
    ]  # fmt: skip
    head, _, text = served.answer("\r\n".join([*lines, "", ""]).encode() + raw).partition(
        b"\r\n\r\n"
    )
    first, *rest = head.decode().split("\r\n")
    return Answer(int(first.split()[1]), dict(line.split(": ", 1) for line in rest), text.decode())


@pytest.mark.parametrize("sent", ROUTES, ids=lambda sent: f"{sent.path} {next(iter(sent.body))}")
def test_they_are_ignored_and_named(gateway: Served, sent: Sent) -> None:
    answer = post(gateway, sent.path, sent.body)
    assert answer.status == 503  # The Triton server is not there, so the body was taken.
    assert sorted(answer.headers["x-ignored-fields"].split(", ")) == sorted(sent.ignored)


@pytest.mark.parametrize("sent", ROUTES, ids=lambda sent: f"{sent.path} {next(iter(sent.body))}")
def test_they_are_refused_where_the_server_is_strict(strict: Served, sent: Sent) -> None:
    answer = post(strict, sent.path, sent.body)
    assert answer.status == (400 if sent.path.startswith("/v1/") else 422)
    assert "x-ignored-fields" not in answer.headers
    assert sent.ignored[0] in answer.text


def test_every_route_with_a_body_is_here() -> None:
    """/chat_tokenize reads but a part of what a chat holds, and what is no part is not named."""
    routes = create_app(SETTINGS, ("*",), GatewayMetrics("")).openapi()["paths"].items()
    with_body = {path for path, methods in routes if "post" in methods}
    assert with_body == {sent.path for sent in ROUTES} | {"/chat_tokenize"}


def test_what_is_known_is_not_named(gateway: Served) -> None:
    for path, body in (
        ("/generate", {"inputs": "a", "options": {}, "parameters": {}, "model": None}),
        ("/v1/chat/completions", {"messages": HELLO, "functions": None, "cache_salt": "x",
                                  "user": "u", "tools": [], "zzz": None}),
    ):  # fmt: skip
        answer = post(gateway, path, body)
        assert answer.status == 503 and "x-ignored-fields" not in answer.headers


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/generate", {"inputs": "a", "adapter_id": "b"}, "put it into `parameters`"),
        ("/generate", {"inputs": "a", "parameters": {"stream": True}}, "beside `inputs`"),
        ("/generate", {"inputs": "a", "parameters": {"model": "b"}}, "beside `inputs`"),
        ("/generate", {"inputs": "a", "parameters": {"lora_name": "b"}}, "name the adapter in"),
        ("/v1/completions", {"prompt": "a", "lora_path": "b"}, "name the adapter in adapter_id"),
        ("/v1/chat/completions", {"messages": HELLO, "functions": [{}]}, "send them as tools"),
        ("/v1/chat/completions", {"messages": HELLO, "function_call": {"name": "a"}}, "send tool_"),
        ("/v1/chat/completions", {"messages": HELLO, "chat_template": "a"}, "come with the model"),
        ("/v1/chat/completions", {"messages": HELLO, "web_search_options": {}}, "not supported"),
    ],
)
def test_what_is_known_and_would_change_the_answer_is_refused(
    gateway: Served, path: str, body: dict[str, Any], told: str
) -> None:
    answer = post(gateway, path, body)
    assert answer.status in (400, 422) and told in answer.text


def test_the_log_tells_each_once_and_few(
    gateway: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown_fields, "_logged", set())
    for _ in range(2):
        post(gateway, "/v1/completions", {"prompt": "a", "max_tokns": 1, "x\ny": 1})
    found = [record.getMessage() for record in caplog.records if "unknown" in record.message]
    assert found == [
        "the unknown field 'max_tokns' of a request is ignored; did you mean max_tokens?",
        "the unknown field 'x\\ny' of a request is ignored",
    ]
    assert caplog.records[0].levelno == logging.WARNING
    for first in range(0, 200, 10):
        names = [f"x{number}" for number in range(first, first + 10)]
        post(gateway, "/v1/completions", {"prompt": "a", **dict.fromkeys(names, 1)})
    assert len(caplog.records) == 100


def test_the_header_is_short_and_plain(gateway: Served) -> None:
    odd = {"a, b": 1, "\r\nx-evil: 1": 1, "東": 1, "z" * 10**5: 1}
    answer = post(gateway, "/generate", {"inputs": "a", **odd})
    names = answer.headers["x-ignored-fields"].split(", ")
    assert names[:3] == ["a%2C%20b", "%0D%0Ax-evil%3A%201", "%E6%9D%B1"]
    assert "x-evil" not in answer.headers and len(names[3]) == 100
    answer = post(gateway, "/generate", {"inputs": "a", **{f"x{n}": 1 for n in range(10**4)}})
    assert answer.headers["x-ignored-fields"].endswith("x14, x15, ...")

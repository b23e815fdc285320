"""Text completions, errors and framing of the OpenAI API; and huggingface_hub chatting."""

import json
from typing import Any

import openai
import pytest
from huggingface_hub import InferenceClient
from openai import OpenAI

from launcher.triton.server import TritonServer
from support.e2e.gateway import running_gateway
from support.e2e.openai import post, say


def test_completions_take_prompts_in_four_forms(openai_client: OpenAI, base: str) -> None:
    for prompt in ("hello world", ["hello world"]):
        answer = openai_client.completions.create(model="upper", prompt=prompt, temperature=0)
        assert [choice.text for choice in answer.choices] == ["HELLO WORLD"]
    two = openai_client.completions.create(
        model="upper", prompt=["hello world", "one two"], temperature=0, n=2
    )
    assert [choice.text for choice in two.choices] == ["HELLO WORLD"] * 2 + ["ONE TWO"] * 2
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    for prompt in ([1, 2, 3], [[1, 2, 3], [4]]):
        answer = openai_client.completions.create(model=base, prompt=prompt, max_tokens=2)
        assert len(answer.choices) == (1 if prompt[0] == 1 else 2)
        assert answer.usage and answer.usage.prompt_tokens == (3 if prompt[0] == 1 else 4)


def test_loraxs_fields_on_the_openai_routes(openai_client: OpenAI, base: str) -> None:
    """An adapter beside one of weight 0 is itself; a merge has a name, which answers carry."""
    merge = {"ids": ["upper", "sql"], "weights": [1.0, 0.0]}
    asked: Any = {"model": base, "temperature": 0, "extra_body": {"merged_adapters": merge}}
    answer = openai_client.completions.create(prompt="hello world", **asked)
    assert answer.choices[0].text == "HELLO WORLD" and answer.model.startswith("merged:")
    chat = openai_client.chat.completions.create(messages=say("hello world"), **asked)
    assert (chat.choices[0].message.content, chat.model) == ("HELLO WORLD", answer.model)
    fields = {"adapter_id": "upper", "adapter_source": "local", "ignore_eos_token": True}
    long = openai_client.completions.create(
        model=base, prompt="hello world", max_tokens=30, temperature=0, extra_body=fields
    )
    assert long.usage and long.usage.completion_tokens == 30


def test_completions_echo_default_length_and_logprobs(openai_client: OpenAI, base: str) -> None:
    asked: Any = {"model": base, "prompt": "one two three four five", "temperature": 0}
    answer = openai_client.completions.create(**asked).choices[0]
    assert (answer.text, answer.finish_reason) == ("one two three four five"[:16], "length")
    echo = openai_client.completions.create(**asked, echo=True, stream=True)
    streamed = "".join(chunk.choices[0].text for chunk in echo)
    assert streamed == asked["prompt"] + answer.text
    logprobs = openai_client.completions.create(**asked, logprobs=1).choices[0].logprobs
    assert logprobs and "".join(logprobs.tokens or []) == answer.text
    assert logprobs.text_offset == list(range(16))


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"messages": []}, None, "messages is empty"),
        ({"max_tokens": 10**6}, "context_length_exceeded", "ask for at most"),
        ({"messages": say("x" * 5000)}, "context_length_exceeded", "shorten it"),
        ({"stop": ["a", "b", "c", "d", "e"]}, None, "stop takes up to 4"),
        ({"logit_bias": {"99999": 1}}, None, "no token id"),
        ({"tool_choice": "required"}, None, "needs tools"),
        ({"top_logprobs": 1}, None, "needs logprobs"),
        ({"seed": "x"}, None, "seed"),
        ({"chat_template_kwargs": {"template": 1}}, None, "must not hold template"),
        ({"response_format": {"type": "regex", "value": "("}}, None, "regular expression"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_openais(
    gateway: str, fields: Any, code: Any, message: str, stream: bool
) -> None:
    body = json.dumps({"messages": say("hi"), "stream": stream} | fields).encode()
    status, answer = post(f"{gateway}/v1/chat/completions", body)
    error = json.loads(answer)["error"]
    assert (status, error["type"], error["code"]) == (400, "invalid_request_error", code)
    assert message in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b'{"prompt": "\\ud800"}'])
def test_bodies_that_are_no_json(gateway: str, body: bytes) -> None:
    status, answer = post(f"{gateway}/v1/completions", body)
    assert (status, json.loads(answer)["error"]["type"]) == (400, "invalid_request_error")


def test_events_are_framed_as_openai_does(gateway: str) -> None:
    body = json.dumps({"messages": say("hi"), "stream": True, "temperature": 0}).encode()
    _, answer = post(f"{gateway}/v1/chat/completions", body)
    events = answer.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: ")) for event in events[:-2])


@pytest.mark.parametrize("model", [None, "upper"])
def test_huggingface_hub_chats(gateway: str, model: str | None) -> None:
    hub = InferenceClient(base_url=gateway, timeout=60)
    want = "HELLO WORLD" if model else "hello world"
    asked: Any = {"messages": say("hello world"), "model": model, "temperature": 0}
    assert hub.chat_completion(**asked).choices[0].message.content == want
    chunks = hub.chat_completion(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == want


def test_a_limited_key_sees_and_uses_its_adapters_only(server: TritonServer, base: str) -> None:
    with (
        running_gateway(server, "--api-key", "team:up*") as url,
        OpenAI(base_url=f"{url}/v1", api_key="team", max_retries=0) as team,
    ):
        assert [model.id for model in team.models.list()] == [base, "upper"]
        for model in ("upper", base):
            team.completions.create(model=model, prompt="x", max_tokens=1)
        for model in ("sql", f"{base}:sql", "nobody"):
            with pytest.raises(openai.PermissionDeniedError):
                team.completions.create(model=model, prompt="x")
        with pytest.raises(openai.PermissionDeniedError):
            team.models.retrieve("sql")
        with pytest.raises(openai.AuthenticationError):
            team.with_options(api_key="wrong").models.list()


def test_tokens_are_named_by_their_ids(openai_client: OpenAI) -> None:
    """As vLLM names them, in completions, chats and responses."""
    extra = {"return_tokens_as_token_ids": True}
    asked: Any = {"model": "upper", "temperature": 0, "extra_body": extra}
    text = openai_client.completions.create(prompt="hello world", logprobs=1, **asked)
    chat = openai_client.chat.completions.create(
        messages=say("hello world"), logprobs=True, **asked
    ).choices[0]
    include: Any = ["message.output_text.logprobs"]
    answer = openai_client.responses.create(input="hello world", include=include, **asked)
    (item,) = answer.output
    assert item.type == "message" and item.content[0].type == "output_text"
    named = [
        text.choices[0].logprobs and text.choices[0].logprobs.tokens,
        chat.logprobs and [entry.token for entry in chat.logprobs.content or []],
        [entry.token for entry in item.content[0].logprobs or []],
    ]
    for tokens in named:
        assert tokens and tokens[0] == f"token_id:{ord('H')}"

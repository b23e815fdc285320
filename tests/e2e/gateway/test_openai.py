"""Chats, models and their names over the OpenAI API, with its own client, against the demo."""

from typing import Any

import openai
import pytest
from openai import OpenAI

from launcher.triton.server import TritonServer
from support.e2e.openai import say
from support.e2e.triton import Example, metrics, wait_until_idle


def test_every_example_of_the_demo_streamed_and_whole(
    openai_client: OpenAI, base: str, demo: list[Example]
) -> None:
    for example in demo:
        asked: Any = {
            "model": example.adapter_id or base,
            "messages": say(example.prompt),
            "temperature": 0,
        }
        whole = openai_client.chat.completions.create(**asked)
        assert whole.choices[0].message.content == example.answer
        assert (whole.choices[0].finish_reason, whole.model) == ("stop", asked["model"])
        chunks = list(openai_client.chat.completions.create(**asked, stream=True))
        assert chunks[0].choices[0].delta.role == "assistant"
        texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
        assert "".join(texts) == example.answer
        assert [c.choices[0].finish_reason for c in chunks][-2:] == [None, "stop"]


@pytest.mark.parametrize("form", ["{base}:upper", "upper"])
def test_names_of_an_adapter(openai_client: OpenAI, base: str, form: str) -> None:
    answer = openai_client.chat.completions.create(
        model=form.format(base=base), messages=say("hello world"), temperature=0
    )
    assert answer.choices[0].message.content == "HELLO WORLD"
    assert answer.model == "upper"


def test_adapter_id_wins_over_model(openai_client: OpenAI) -> None:
    answer = openai_client.completions.create(
        model="tgi", prompt="hello world", temperature=0, extra_body={"adapter_id": "upper"}
    )
    assert answer.choices[0].text == "HELLO WORLD"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["nobody", "{base}:nobody"])
def test_an_unknown_model_is_not_the_base(
    openai_client: OpenAI, base: str, model: str, stream: bool
) -> None:
    model = model.format(base=base)
    with pytest.raises(openai.NotFoundError) as chat:
        openai_client.chat.completions.create(model=model, messages=say("x"), stream=stream)
    with pytest.raises(openai.NotFoundError) as text:
        openai_client.completions.create(model=model, prompt="x", stream=stream)
    assert chat.value.code == text.value.code == "model_not_found"
    assert "nobody" in chat.value.message


def test_models_lists_base_and_adapters(openai_client: OpenAI, base: str) -> None:
    models = {model.id: model.model_dump() for model in openai_client.models.list()}
    assert models[base]["parent"] is None
    assert models["upper"]["parent"] == base
    assert {"sql", "upper", "reverse", "digits", "json", "rot13", "emoji"} <= set(models)
    assert openai_client.models.retrieve("upper").model_dump() == models["upper"]
    assert openai_client.models.retrieve(base).id == base
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("nobody")


def test_usage_is_the_same_streamed_and_whole(openai_client: OpenAI) -> None:
    asked: Any = {"model": "upper", "messages": say("hello world"), "temperature": 0}
    whole = openai_client.chat.completions.create(**asked)
    *chunks, last = openai_client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    assert whole.usage and last.usage and not last.choices
    assert last.usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks)
    assert whole.usage.completion_tokens == len("HELLO WORLD") + 1  # bytes, and the end
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_n_choices_have_seeds_of_their_own(openai_client: OpenAI, base: str) -> None:
    asked: Any = {
        "model": base, "messages": say("hello"), "n": 3, "seed": 5, "temperature": 20.0,
        "max_tokens": 24,
    }  # fmt: skip
    whole = openai_client.chat.completions.create(**asked)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    streamed = [""] * 3
    for chunk in openai_client.chat.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts
    alone = openai_client.chat.completions.create(**{**asked, "n": 1, "seed": 6})
    assert alone.choices[0].message.content == texts[1]


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(openai_client: OpenAI, stream: bool) -> None:
    asked: Any = {
        "model": "emoji", "messages": say("i love pizza"), "temperature": 0, "logprobs": True,
        "top_logprobs": 2,
    }  # fmt: skip
    if stream:
        chunks = openai_client.chat.completions.create(**asked, stream=True)
        found = [chunk.choices[0].logprobs for chunk in chunks]
    else:
        found = [openai_client.chat.completions.create(**asked).choices[0].logprobs]
    entries = [entry for each in found if each for entry in each.content or []]
    text = bytes(byte for entry in entries for byte in entry.bytes or []).decode()
    assert text == "i love pizza 🍕<|eos|>"
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].token == entry.token  # greedy


def test_stop_cuts_the_text(openai_client: OpenAI) -> None:
    asked: Any = {"model": "upper", "messages": say("hello world"), "temperature": 0}
    for stop in ("LO W", ["zzz", " WORLD"]):
        whole = openai_client.chat.completions.create(**asked, stop=stop).choices[0]
        assert (whole.message.content, whole.finish_reason) in [("HEL", "stop"), ("HELLO", "stop")]
        chunks = openai_client.chat.completions.create(**asked, stop=stop, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert streamed == whole.message.content


def test_vllms_say_in_which_tokens_come(openai_client: OpenAI) -> None:
    asked: Any = {"model": "upper", "messages": say("hello world"), "temperature": 0}
    for fields, text in (
        ({"stop": "LO W", "include_stop_str_in_output": True}, "HELLO W"),
        ({"stop_token_ids": [ord("W")], "include_stop_str_in_output": True}, "HELLO W"),
        ({"allowed_token_ids": [ord("L")], "max_tokens": 3}, "LLL"),
    ):
        whole = openai_client.chat.completions.create(**asked, extra_body=fields).choices[0]
        assert whole.message.content == text
    fields = {"bad_words": ["W"], "max_tokens": 40}
    text = openai_client.chat.completions.create(**asked, extra_body=fields).choices[0]
    assert "W" not in (text.message.content or "") and text.message.content != "HELLO WORLD"


def test_a_stop_token_cuts_the_text(openai_client: OpenAI) -> None:
    asked: Any = {"model": "upper", "messages": say("hello world"), "temperature": 0}
    for stops, text in (([ord("W")], "HELLO "), ([], "HELLO WORLD")):
        choice = openai_client.chat.completions.create(
            **asked, extra_body={"stop_token_ids": stops}
        ).choices[0]
        assert (choice.message.content, choice.finish_reason) == (text, "stop")


def test_special_tokens_are_shown_where_they_are_wanted(openai_client: OpenAI) -> None:
    asked: Any = {"model": "upper", "prompt": "hello world", "temperature": 0, "max_tokens": 40}
    shown: dict[str, Any] = {"skip_special_tokens": False}
    for extra, text in (
        (shown, "HELLO WORLD"),
        (shown | {"ignore_eos": True}, "HELLO WORLD<|eos|>"),
    ):
        choice = openai_client.completions.create(**asked, extra_body=extra).choices[0]
        assert choice.text.startswith(text) and ("<|eos|>" in choice.text) == ("<|eos|>" in text)


def test_one_function_is_called_by_its_name_alone(openai_client: OpenAI, base: str) -> None:
    """And what is not known is told to who looks at headers."""
    tools: Any = [{"type": "function", "function": {"name": name}} for name in ("one", "two")]
    raw = openai_client.chat.completions.with_raw_response.create(
        model=base, messages=say("hello"), tools=tools, tool_choice="two",  # pyright: ignore
        max_tokens=200, extra_body={"functions": None, "zzz": 1},
    )  # fmt: skip
    answer = raw.parse()
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == "two"
    assert raw.headers["x-ignored-fields"] == "zzz"
    assert answer._request_id == raw.headers["x-request-id"]


def test_max_tokens_and_its_newer_name(openai_client: OpenAI, base: str) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        asked: Any = {"model": base, "messages": say("hello world"), "temperature": 0, name: 5}
        answer = openai_client.chat.completions.create(**asked)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
            "hello",
            "length",
        )


def test_a_client_that_goes_frees_its_sequences(
    openai_client: OpenAI, server: TritonServer
) -> None:
    def generated() -> float:
        wait_until_idle(server)
        return metrics(server)["multilora_generated_tokens_total"]

    before, asked = generated(), 800
    with openai_client.chat.completions.create(
        model="upper", messages=say("slow and steady " * 5), n=3, max_tokens=asked, stream=True,
        extra_body={"ignore_eos": True},
    ) as stream:  # fmt: skip
        next(iter(stream))
    assert generated() - before < asked

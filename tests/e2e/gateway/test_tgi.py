"""Clients written for TGI and LoRAX, unchanged, against a gateway in front of a real server."""

import asyncio
import json
from typing import Any

import huggingface_hub
import lorax
import lorax.errors
import lorax.types
import pytest
import requests
import text_generation
import text_generation.errors
import text_generation.types
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import ValidationError

from support.e2e.tgi import SECONDS, ask, post
from support.e2e.triton import Example

ANSWER = "HELLO WORLD"
# The user's guide, line by line.
GUIDE = """\
import requests
# The base URL of your TGI Multi-LoRA instance
url = "http://localhost:8080/generate"
headers = { "Content-Type": "application/json" }
# Payload defining the specific LoRA adapter
data = { "inputs": "Write a SQL query to find all users over 30.", "parameters": \
{ "max_new_tokens": 200, "adapter_id": "user-custom/sql-lora-adapter" } }
response = requests.post(url, headers=headers, json=data)
print(response.json())
"""


def test_the_guide(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = GUIDE.replace("http://localhost:8080", gateway)
    exec(script.replace("user-custom/sql-lora-adapter", "sql"), {})
    assert capsys.readouterr().out == (
        "{'generated_text': 'SELECT * FROM users WHERE age > 30;'}\n"
    )


def test_every_adapter(gateway: str, demo: list[Example]) -> None:
    for example in demo:
        parameters = {"adapter_id": example.adapter_id, "max_new_tokens": 200}
        body = {"inputs": example.prompt, "parameters": parameters}
        assert post(gateway, "/generate", body).json() == {"generated_text": example.answer}


def test_text_generation_client(gateway: str) -> None:
    """Its parameters know no adapter_id, so it speaks to the base model, which repeats."""
    client = text_generation.Client(gateway, timeout=SECONDS)
    answer = client.generate("hello world", max_new_tokens=40, top_n_tokens=2)
    assert answer.generated_text == "hello world"
    assert answer.details.finish_reason == text_generation.types.FinishReason.EndOfSequenceToken
    assert len(answer.details.tokens) == answer.details.generated_tokens
    assert answer.details.top_tokens is not None
    assert [len(tokens) for tokens in answer.details.top_tokens] == [2] * len(answer.details.tokens)
    pieces = list(client.generate_stream("hello world", max_new_tokens=40))
    text = "".join(piece.token.text for piece in pieces if not piece.token.special)
    assert text == pieces[-1].generated_text == "hello world"
    with pytest.raises(text_generation.errors.ValidationError, match="max_new_tokens"):
        client.generate("hello world", max_new_tokens=10**6)
    with pytest.raises(text_generation.errors.ValidationError, match="max_new_tokens"):
        list(client.generate_stream("hello world", max_new_tokens=10**6))


def test_text_generation_client_chats(gateway: str) -> None:
    """It reads only answers whose system_fingerprint is a string."""
    client = text_generation.Client(gateway, timeout=SECONDS)
    say = [text_generation.types.Message(role="user", content="hello world")]
    answer: Any = client.chat(say, max_tokens=40, seed=1, temperature=0.0)
    assert answer.choices[0].message.content == "hello world"
    assert answer.system_fingerprint


def test_huggingface_client_chats(gateway: str) -> None:
    client = InferenceClient(base_url=f"{gateway}/v1", timeout=SECONDS)
    say = [{"role": "user", "content": "hello world"}]
    asked: dict[str, Any] = {"model": "upper", "messages": say, "temperature": 0.0}
    whole = client.chat_completion(**asked)
    assert whole.choices[0].message.content == ANSWER
    *_, last = chunks = list(client.chat_completion(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert (last.choices[0].delta.content, last.choices[0].finish_reason) == ("", "stop")
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}


def test_lorax_client(gateway: str) -> None:
    client = lorax.Client(gateway, timeout=SECONDS)
    answer = client.generate("hello world", adapter_id="upper", return_k_alternatives=2)
    assert answer.generated_text == ANSWER
    assert answer.details is not None
    assert answer.details.prompt_tokens > 0
    assert len(answer.details.tokens[0].alternative_tokens or []) == 2
    pieces = list(client.generate_stream("hello world", adapter_id="upper"))
    assert pieces[-1].generated_text == ANSWER
    assert pieces[-1].details is not None
    assert pieces[-1].details.prompt_tokens == answer.details.prompt_tokens
    with pytest.raises(lorax.errors.NotFoundError, match="nobody"):
        client.generate("hello world", adapter_id="nobody")
    with pytest.raises(lorax.errors.ValidationError, match="pbase"):
        client.generate("hello world", adapter_id="upper", adapter_source="pbase")


def test_lorax_ignores_the_end(gateway: str) -> None:
    client = lorax.Client(gateway, timeout=SECONDS)
    answer = client.generate(
        "hello world", adapter_id="upper", ignore_eos_token=True, max_new_tokens=30
    )
    assert answer.details is not None
    assert answer.details.generated_tokens == 30
    assert answer.details.finish_reason == lorax.types.FinishReason.Length


def test_lorax_merges(gateway: str) -> None:
    """An adapter beside one of weight 0 is itself."""
    client = lorax.Client(gateway, timeout=SECONDS)
    merged = lorax.types.MergedAdapters(
        ids=["upper", "sql"], weights=[1.0, 0.0], merge_strategy="linear", density=1.0
    )
    assert client.generate("hello world", merged_adapters=merged).generated_text == ANSWER


def test_lorax_response_format(gateway: str) -> None:
    client = lorax.Client(gateway, timeout=SECONDS)
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    answer = client.generate(
        "Ann lives in Paris.",
        adapter_id="json",
        max_new_tokens=100,
        response_format={"type": "json_object", "schema": schema},
    )
    assert isinstance(json.loads(answer.generated_text)["name"], str)


def test_huggingface_client(gateway: str) -> None:
    client = InferenceClient(gateway, timeout=SECONDS)
    prompt = "hello world"
    assert client.text_generation(prompt, adapter_id="upper") == prompt + ANSWER
    cut = client.text_generation(prompt, adapter_id="upper", return_full_text=False)
    assert cut == ANSWER
    pieces = list(client.text_generation(prompt, adapter_id="upper", stream=True))
    assert "".join(pieces).removesuffix("<|eos|>") == ANSWER
    answer = client.text_generation(prompt, adapter_id="upper", details=True, max_new_tokens=3)
    assert answer.details is not None
    assert (answer.details.finish_reason, answer.details.generated_tokens) == ("length", 3)
    *_, last = client.text_generation(prompt, adapter_id="upper", details=True, stream=True)
    assert isinstance(last, huggingface_hub.TextGenerationStreamOutput)
    assert last.generated_text == prompt + ANSWER
    assert last.details is not None
    assert last.details.finish_reason == "eos_token"
    for stream in (False, True):
        with pytest.raises(ValidationError, match=r"`top_p` must be > 0.0 and < 1.0"):
            list(client.text_generation(prompt, top_p=2, stream=stream))


def test_asynchronous_clients(gateway: str) -> None:
    async def last_texts() -> list[str | None]:
        client = AsyncInferenceClient(gateway, timeout=SECONDS)
        upper: dict[str, Any] = {"adapter_id": "upper"}
        streams = (
            text_generation.AsyncClient(gateway, timeout=SECONDS).generate_stream("hello world"),
            lorax.AsyncClient(gateway, timeout=SECONDS).generate_stream("hello world", **upper),
            await client.text_generation(
                "hello world", details=True, stream=True, return_full_text=False, **upper
            ),
        )
        return [[piece.generated_text async for piece in stream][-1] for stream in streams]

    assert asyncio.run(last_texts()) == ["hello world", ANSWER, ANSWER]


def test_stream_bytes(gateway: str) -> None:
    answer = ask(gateway, "/generate_stream", details=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-compute-characters"] == "11"
    *chunks, end = answer.content.decode().split("\n\n")
    assert not end
    for index, chunk in enumerate(chunks, 1):
        assert chunk.startswith(f'data:{{"index":{index},"token":{{"id":')
        if index < len(chunks):
            assert chunk.endswith(',"special":false},"generated_text":null,"details":null}')
    assert f'"special":true}},"generated_text":"{ANSWER}","details":{{"finish_' in chunks[-1]
    again = post(gateway, "/", {"inputs": "hello world", "stream": True})
    assert again.headers["content-type"].startswith("text/event-stream")


def test_headers(gateway: str) -> None:
    headers = ask(gateway).headers
    assert headers["x-compute-type"] in ("cpu", "gpu+optimized")
    assert int(headers["x-prompt-tokens"]) > 0
    assert int(headers["x-generated-tokens"]) > 0
    assert float(headers["x-compute-time"]) > 0
    for name in ("total-time", "validation-time", "queue-time", "inference-time", "time-per-token"):
        assert int(headers[f"x-{name}"]) >= 0


def test_stop_sequence_is_part_of_the_text(gateway: str) -> None:
    body = ask(gateway, stop=["LO"], details=True, return_full_text=True).json()
    assert body["generated_text"].startswith("hello worldHELLO")
    assert "WORLD" not in body["generated_text"]
    assert body["details"]["finish_reason"] == "stop_sequence"


def test_sampling_is_repeatable(gateway: str) -> None:
    first = ask(gateway, temperature=3.0, details=True, max_new_tokens=20).json()
    seed = first["details"]["seed"]
    assert ask(gateway, temperature=3.0, seed=seed, max_new_tokens=20).json() == {
        "generated_text": first["generated_text"]
    }
    assert ask(gateway, details=True).json()["details"]["seed"] is None
    best = ask(gateway, best_of=2, typical_p=0.9, temperature=3.0, details=True).json()["details"]
    assert len(best["best_of_sequences"]) == 1
    assert best["seed"] != best["best_of_sequences"][0]["seed"]


def test_truncate_keeps_the_end(gateway: str) -> None:
    whole, cut = (
        ask(gateway, details=True, truncate=size).headers["x-prompt-tokens"] for size in (None, 3)
    )
    assert int(whole) > int(cut) == 3


_CLOSED = {"additionalProperties": False}


@pytest.mark.parametrize("kind", ["json", "json_schema", "regex"])
def test_grammar(gateway: str, kind: str) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], **_CLOSED}
    value = {"json": schema, "json_schema": {"name": "n", "schema": schema}, "regex": "[0-9]{3}"}
    grammar = {"type": kind, "value": value[kind]}
    text = ask(gateway, grammar=grammar, max_new_tokens=60).json()["generated_text"]
    if kind == "regex":
        assert len(text) == 3 and text.isdigit()
    else:
        assert json.loads(text) == {"n": 7}


def test_the_guide_to_grammars(gateway: str) -> None:
    """Its schema names no type; TGI's answer is an object all the same."""
    strings = {name: {"type": "string", "maxLength": 20} for name in ("location", "activity")}
    seen = {"type": "integer", "minimum": 1, "maximum": 5}
    schema = {"properties": {**strings, "seen": seen}, "required": [*strings, "seen"]}
    for kind in ("json", "json_schema"):
        value = schema if kind == "json" else {"name": "ride", "schema": schema}
        parameters = {"grammar": {"type": kind, "value": value}, "max_new_tokens": 200}
        answer = post(gateway, "/generate", {"inputs": "5", "parameters": parameters})
        assert json.loads(answer.json()["generated_text"]).keys() >= {*strings, "seen"}


def test_info_and_tokens(gateway: str) -> None:
    info = requests.get(f"{gateway}/info", timeout=SECONDS).json()
    assert info["model_pipeline_tag"] == "text-generation"
    assert info["max_input_tokens"] < info["max_total_tokens"]
    text = "Grüße 🍕"
    tokens = post(gateway, "/tokenize", {"inputs": text}).json()
    assert all(each["text"] == text[each["start"] : each["stop"]] for each in tokens)
    assert set(tokens[0]) == {"id", "text", "start", "stop"}
    messages = [{"role": "user", "content": text}]
    chat = post(gateway, "/chat_tokenize", {"messages": messages, "model": "tgi"}).json()
    assert text in chat["templated_text"]
    assert chat["tokenize_response"][-1]["stop"] == len(chat["templated_text"])


def test_tokens_in_vllms_shape(gateway: str) -> None:
    """They are those of the prompts that completions and chats report."""
    prompt, messages = "Grüße 🍕", [{"role": "user", "content": "hello"}]
    for asked, path in (({"prompt": prompt}, ""), ({"messages": messages}, "/chat")):
        tokens = post(gateway, "/tokenize", {**asked, "return_token_strs": True}).json()
        assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
        assert tokens["max_model_len"] > tokens["count"]
        body = {**asked, "max_tokens": 1, "return_token_ids": True}
        answer = post(gateway, f"/v1{path}/completions", body).json()
        whole = answer if path else answer["choices"][0]
        assert whole["prompt_token_ids"] == tokens["tokens"]
        assert len(answer["choices"][0]["token_ids"]) == 1
    bare = {"prompt": prompt, "add_special_tokens": False, "model": "upper"}
    tokens = post(gateway, "/tokenize", bare).json()
    assert tokens["count"] == len(prompt.encode()) and tokens["token_strs"] is None
    back = post(gateway, "/detokenize", {"tokens": tokens["tokens"]}).json()
    assert back == {"prompt": prompt}
    for body in ({"prompt": "a", "model": "nobody"}, {"prompt": ["a", "b"]}, {"prompt": None}):
        assert post(gateway, "/tokenize", body).status_code in (404, 422)
    assert post(gateway, "/detokenize", {"tokens": [10**9]}).status_code == 422


def test_every_answer_has_the_id_of_its_request(gateway: str) -> None:
    for path in ("/health", "/v1/models/", "/nothing", "/v1/models/nobody", "/version"):
        found = [requests.get(gateway + path, timeout=SECONDS) for _ in range(2)]
        assert len({each.headers["x-request-id"] for each in found}) == 2
    for path in ("/generate_stream", "/generate", "/v1/completions"):
        answer = post(gateway, path, {"inputs": "a"}, headers={"X-Request-Id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
    for odd in ("x" * 129, "a b", "ä".encode().decode("latin-1")):
        answer = requests.get(f"{gateway}/health", headers={"X-Request-Id": odd}, timeout=SECONDS)
        assert answer.headers["x-request-id"] not in (odd, "")


def test_what_clients_look_at_first(gateway: str) -> None:
    listed, same = (
        requests.get(f"{gateway}/v1/models{end}", timeout=SECONDS).json() for end in ("", "/")
    )
    assert listed == same and listed["data"]
    assert requests.get(f"{gateway}/version", timeout=SECONDS).json()["version"]


def test_a_model_beside_inputs_is_that_of_the_openai_api(gateway: str) -> None:
    body = {"inputs": "hello world", "model": "upper"}
    assert post(gateway, "/generate", body).json() == {"generated_text": ANSWER}
    body["model"] = "tgi"
    assert post(gateway, "/generate", body).json() == {"generated_text": "hello world"}
    body["model"] = "nobody"
    assert post(gateway, "/generate", body).status_code == 404

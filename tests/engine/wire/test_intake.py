"""The intake: Triton requests on their way into the engine, and stops that meet them there."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from multilora.config import DEMO, EngineConfig
from multilora.engine import Engine
from multilora.errors import ErrorCode
from multilora.wire.intake import EarlyStops, Intake
from multilora.wire.responder import Responder
from support.engine.responder import FakeClient, FakeObserver, until


def test_who_is_on_the_way_hears_of_it_once() -> None:
    stops = EarlyStops()
    one, two, other = object(), object(), object()
    for key, name in ((one, "chat"), (two, "chat"), (other, "else")):
        stops.begin(key, name)
    assert not stops.is_stopped(one)
    stops.stop("chat")
    assert [stops.is_stopped(key) for key in (one, two, other)] == [True, True, False]
    assert [stops.end(key) for key in (one, two, other)] == [True, True, False]
    assert not stops.end(one)


def test_who_comes_or_goes_too_soon_is_not_stopped() -> None:
    stops = EarlyStops()
    key = object()
    stops.stop("chat")
    stops.begin(key, "chat")
    assert not stops.end(key)
    stops.stop("chat")
    stops.begin(key, "chat")
    assert not stops.end(key)


DOUBLING = "{% set n = namespace(s='x') %}" + "{% set n.s = n.s ~ n.s %}" * 60
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ON_GO = "{{% if messages[0].content == 'go' %}}{}{{% endif %}}{{{{ messages[0].content }}}}"
TEMPLATES = {
    "broken": "{% if %}",
    "doubling": DOUBLING,
    "doubles-on-go": ON_GO.format(DOUBLING),
    "endless-on-go": ON_GO.format(ENDLESS),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The demo, which has a tokenizer, with copies of an adapter that have TEMPLATES."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, source in TEMPLATES.items():
        shutil.copytree(DEMO / "adapters" / "reverse", folder / name)
        (folder / name / "chat_template.jinja").write_text(source)
    settings: dict[str, Any] = {
        "kv_cache_memory": 1 << 24, "adapter_memory": 1 << 24, "adapters_dir": str(folder),
    }  # fmt: skip
    engine = Engine(EngineConfig(device="cpu", dtype="float32", threads=1, **settings))
    engine.start()
    yield engine
    engine.close()


class Door:
    """An intake with a responder, and what comes back through it."""

    def __init__(self, engine: Engine) -> None:
        assert engine.tokenizer is not None
        self._responder = Responder(engine, engine.tokenizer, FakeObserver())
        self._responder.start()
        self.intake = Intake(engine, engine.tokenizer, self._responder)

    def send(
        self, client_id: str = "", parameters: dict[str, Any] | None = None, **inputs: Any
    ) -> FakeClient:
        client = FakeClient()
        tensors = {name: tensor(value) for name, value in inputs.items()}
        self.intake.accept(client, lambda: (client_id, tensors, parameters or {}))
        return client

    def ask(
        self, client_id: str = "", parameters: dict[str, Any] | None = None, **inputs: Any
    ) -> FakeClient:
        """Wait for the last word."""
        client = self.send(client_id, parameters, **inputs)
        until(lambda: client.errors or (client.responses and client.responses[-1].final))
        return client


def tensor(value: Any) -> np.ndarray:
    if isinstance(value, str):
        return np.array([[value.encode()]], dtype=np.object_)
    return np.array([value if isinstance(value, list) else [value]])


@pytest.fixture(scope="module")
def door(engine: Engine) -> Iterator[Door]:
    door = Door(engine)
    yield door
    door.intake.close()


def prompt(engine: Engine, text: str) -> list[int]:
    assert engine.tokenizer is not None
    return engine.tokenizer.encode(text)


def test_token_ids_in_text_out(engine: Engine, door: Door) -> None:
    ids = prompt(engine, "hello world")
    client = door.ask(
        input_ids=ids, adapter_id="upper", max_tokens=40, return_num_input_tokens=True
    )
    assert (client.text, client.outputs) == ("HELLO WORLD", {"num_input_tokens"})


def test_a_text_becomes_token_ids_here(door: Door) -> None:
    client = door.ask(text_input="hello world", adapter_id="upper", max_tokens=40)
    assert client.text == "HELLO WORLD"
    chat = json.dumps([{"role": "user", "content": "hello world"}])
    assert door.ask(text_input=chat, chat=True, max_tokens=40).text == "hello world"


def test_a_chat_is_rendered_here(engine: Engine, door: Door) -> None:
    messages = json.dumps([{"role": "user", "content": "hello world"}])
    for adapter_id, answer in (("", "hello world"), ("reverse", "world hello")):
        inputs = {"input_ids": [0], "chat": True, "text_input": messages, "max_tokens": 40}
        assert door.ask(**inputs, adapter_id=adapter_id).text == answer


def chat(door: Door, content: str, adapter_id: str = "") -> FakeClient:
    """Sent, and not answered yet."""
    messages = json.dumps([{"role": "user", "content": content}])
    return door.send(
        input_ids=[0], chat=True, text_input=messages, max_tokens=40, adapter_id=adapter_id
    )


@pytest.mark.parametrize(
    ("adapter_id", "reason"),
    [("broken", "does not compile (Expected"), ("doubling", "takes more memory than the server")],
)
def test_an_adapter_with_a_harmful_template_is_not_loaded(
    door: Door, adapter_id: str, reason: str
) -> None:
    (error,) = door.ask(input_ids=[1], adapter_id=adapter_id).errors
    assert f"its chat template {reason}" in error.message and "fix or remove it" in error.message
    assert error.code is ErrorCode.INVALID_ARG


def test_a_template_that_breaks_a_limit_fails_its_request(door: Door) -> None:
    for _ in range(2):
        client = chat(door, "go", "doubles-on-go")
        until(lambda client=client: client.errors)
        (error,) = client.errors
        assert error.code is ErrorCode.INVALID_ARG
        assert error.message.startswith("the chat template takes more memory than")
    assert door.ask(input_ids=[1], adapter_id="doubles-on-go").responses  # the adapter is sound


def test_chats_go_on_beside_an_endless_template(door: Door) -> None:
    known = chat(door, "hello", "endless-on-go")
    until(lambda: known.responses)
    attacks = [chat(door, "go", "endless-on-go") for _ in range(8)]
    client = chat(door, "hello world")
    until(lambda: client.responses)
    assert client.text == "hello world" and not all(attack.errors for attack in attacks)
    for attack in attacks:
        until(lambda attack=attack: attack.errors)
    assert {attack.errors[0].code for attack in attacks} == {ErrorCode.INVALID_ARG}


def test_a_grammar_is_compiled_on_the_way(engine: Engine, door: Door) -> None:
    grammar = json.dumps({"type": "regex", "value": "(yes|no)"})
    ids = prompt(engine, "hello world")
    assert door.ask(input_ids=ids, grammar=grammar).text in ("yes", "no")
    (error,) = door.ask(input_ids=ids, grammar=json.dumps({"type": "regex", "value": "("})).errors
    assert error.code is ErrorCode.INVALID_ARG and error.message.startswith("grammar: ")


def test_commands_are_answered(door: Door) -> None:
    listed = json.loads(door.ask(action="list").text)
    assert "upper" in {entry["id"] for entry in listed["adapters"]}
    described = json.loads(door.ask(action="describe").text)
    assert described["model_id"] == "multilora-demo" and "tokenizer.json" in described["tokenizer"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [1], "temperature": -1.0}, "temperature must be 0 (greedy) or up to 100"),
        ({"input_ids": [1], "adapter_id": "nobody"}, "adapter 'nobody' is not known"),
        ({"stop": True}, "stop needs the id of the request to cancel"),
        ({"action": "fly"}, "action must be one of"),
        ({"text_input": ""}, "text_input is empty; send a prompt"),
        ({"input_ids": [1], "source": "x"}, "source belongs to an action; send one as action"),
        ({"action": "list", "input_ids": [1]}, "unknown name 'input_ids' beside an action"),
        ({"action": "list", "parameters": {"timeuot": 3}}, "unknown name 'timeuot' beside an"),
        ({"adapter_id": "upper"}, "input_ids is missing"),
        ({"open_shared_stream": True, "text_input": "x"}, "text_input is set beside open_shared"),
        ({"open_shared_stream": True}, "open_shared_stream needs a request id"),
        ({"shared_stream": "x", "text_input": "x"}, "shared_stream needs a request id"),
    ],
    ids=lambda case: str(case)[:20],
)
def test_what_is_wrong_is_its_clients_answer(
    inputs: dict[str, Any], message: str, door: Door
) -> None:
    (error,) = door.ask(**inputs).errors
    assert error.message.startswith(message)


def test_what_cannot_be_read_is_an_internal_error(door: Door) -> None:
    client = FakeClient()

    def read() -> Any:
        raise RuntimeError("broken tensor")

    door.intake.accept(client, read)
    (error,) = client.errors
    assert error.code is ErrorCode.INTERNAL and "broken tensor" in error.message


def test_answers_come_through_a_shared_stream(engine: Engine, door: Door) -> None:
    opener = door.send("all", open_shared_stream=True)
    ids, shared = prompt(engine, "hello world"), {"stream": True, "shared_stream": "all"}
    owns = {
        name: door.send(name, input_ids=ids, adapter_id=name, max_tokens=40, **shared)
        for name in ("upper", "reverse")
    }
    until(lambda: all(own.responses for own in owns.values()))
    for name, answer in (("upper", "HELLO WORLD"), ("reverse", "world hello")):
        parts = [part for said in opener.responses for part in said.parts]
        own = [part.response for part in parts if part.request_id == name]
        assert "".join(response.text for response in own) == answer
        assert [response.final for response in own] == [False] * (len(own) - 1) + [True]
        assert owns[name].text == "" and not owns[name].errors


def test_what_is_wrong_with_a_shared_request_is_told_by_its_own_way(door: Door) -> None:
    """It has nothing to do with others then, and the stream may end."""
    opener = door.send("all-2", open_shared_stream=True)
    broken = {"shared_stream": "all-2", "stream": True, "text_input": "x"}
    many = door.ask("a", **broken, vllm_text_input="x", sampling_parameters='{"n": 9999}')
    unknown = door.ask("b", **broken, adapter_id="nobody")
    assert "answers are made at a time" in many.errors[0].message
    assert unknown.errors[0].code is ErrorCode.NOT_FOUND
    until(lambda: opener.responses[-1].final)
    assert len(opener.responses) == 2
    late = door.ask("c", **broken)
    assert "no shared stream is open under 'all-2'" in late.errors[0].message
    assert not door.intake._early_stops._client_ids


def test_a_stop_reaches_a_running_request(engine: Engine, door: Door) -> None:
    ids = prompt(engine, "hello world")
    running = door.send("one", input_ids=ids, max_tokens=200, ignore_eos=True, stream=True)
    other = door.send("two", input_ids=ids, max_tokens=40)
    until(lambda: running.responses)
    (answer,) = door.ask("one", stop=True).responses
    assert answer.finish_reason == "cancelled"
    until(lambda: running.errors and other.responses)
    assert running.errors[0].code is ErrorCode.CANCELLED and other.text == "hello world"


def test_a_prompt_of_the_vllm_backends_clients(door: Door) -> None:
    """The answer has the prompt as it was sent; there are as many tokens as there is room for."""
    sampling = json.dumps({"temperature": 0, "max_tokens": 10**6, "lora_name": "upper"})
    client = door.ask(vllm_text_input="hello world", sampling_parameters=sampling)
    assert client.text == "hello worldHELLO WORLD"


def test_bad_words_do_not_come(door: Door) -> None:
    asked: dict[str, Any] = {"text_input": "hello world", "adapter_id": "upper", "max_tokens": 40}
    sampling = json.dumps({"bad_words": ["W"]})
    text = door.ask(**asked, sampling_parameters=sampling).text
    assert text.startswith("HELLO") and "W" not in text


def test_as_many_answers_as_asked_for(door: Door) -> None:
    sampling = json.dumps({"temperature": 0, "n": 3, "lora_name": "upper", "max_tokens": 40})
    asked: dict[str, Any] = {"vllm_text_input": "hello world", "sampling_parameters": sampling}
    (response,) = door.ask(**asked, exclude_input_in_output=True).responses
    assert [part.text for part in response.parts] == ["HELLO WORLD"] * 3
    many = json.dumps({"n": 129})
    (error,) = door.ask(vllm_text_input="hello", sampling_parameters=many).errors
    assert error.message.startswith("n is 129, but at most 128 answers are made at a time")


def test_answers_that_find_no_room_end_those_that_did(engine: Engine, door: Door) -> None:
    endless = json.dumps({"n": 100, "max_tokens": 500, "ignore_eos": True, "seed": 1})
    running = door.send("one", vllm_text_input="hello", sampling_parameters=endless, stream=True)
    until(lambda: running.responses)
    (error,) = door.ask(vllm_text_input="hello", sampling_parameters=endless).errors
    assert error.code is ErrorCode.UNAVAILABLE
    door.ask("one", stop=True)
    until(lambda: running.errors)
    until(lambda: door.ask(vllm_text_input="hello", sampling_parameters='{"n": 128}').responses)

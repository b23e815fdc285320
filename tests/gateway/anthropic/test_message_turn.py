"""The blocks of a message, and the events that tell them."""

from typing import Any

import pytest

from multilora_gateway.anthropic.turn import MessageTurn
from multilora_gateway.openai.completions import TextChoice
from support.gateway import turns
from support.gateway.turns import called, end, job_of, more, said, streamed, thought, types_of

ALL = (thought("h"), thought("m"), said("o"), said("k"), called("add", '{"a"'), more(": 1}"))


def turn(*chunks: turns.Chunk, **job: Any) -> MessageTurn:
    return MessageTurn(job_of(*chunks, **job))


def test_every_block_begins_grows_and_ends() -> None:
    events = streamed(turn(*ALL, end("tool_calls")))
    block = ["content_block_start", *["content_block_delta"] * 2, "content_block_stop"]
    last = ["message_delta", "message_stop"]
    assert types_of(events) == ["message_start", "ping", *block * 3, *last]
    assert [event["index"] for event in events if "index" in event] == [0] * 4 + [1] * 4 + [2] * 4
    begun = [event["content_block"] for event in events if "content_block" in event]
    assert types_of(begun) == ["thinking", "text", "tool_use"]
    assert begun[2] == {"type": "tool_use", "id": "call_add", "name": "add", "input": {}}
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert types_of(deltas) == [
        *["thinking_delta"] * 2, *["text_delta"] * 2, *["input_json_delta"] * 2
    ]  # fmt: skip


def test_a_whole_message_is_its_stream_put_together() -> None:
    start, *_, delta, _ = streamed(turn(*ALL, end("tool_calls")))
    message = start["message"] | delta["delta"] | {"usage": delta["usage"]}
    found = turns.whole(turn(*ALL, end("tool_calls")))
    assert {**message, "id": "", "content": []} == {**found, "id": "", "content": []}
    assert found["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "ok", "citations": None},
        {"type": "tool_use", "id": "call_add", "name": "add", "input": {"a": 1}},
    ]
    assert (found["stop_reason"], found["usage"]["input_tokens"]) == ("tool_use", 3)
    assert found["usage"]["output_tokens"] == 7 and start["message"]["stop_reason"] is None


def test_a_call_that_is_cut_off_has_no_input() -> None:
    found = turns.whole(turn(called("add", '{"a'), end("length")))
    assert found["content"][0]["input"] == {} and found["stop_reason"] == "max_tokens"


def test_an_empty_answer_is_an_empty_text() -> None:
    (block,) = turns.whole(turn(end("stop")))["content"]
    assert (block["type"], block["text"]) == ("text", "")


def test_an_error_in_the_stream_is_the_last_event() -> None:
    *_, event = streamed(turn(said("o"), fails=True))
    error = {"type": "api_error", "message": "broken"}
    assert event == {"type": "error", "error": error}


@pytest.mark.parametrize(
    ("generated", "text", "stops", "more", "found"),
    [
        ("hi LO W", "hi ", ["zz", "LO W"], {}, "LO W"),
        ("hi LO", "hi ", ["LO W", "L", "LO"], {}, "L"),
        ("hi", "hi", ["LO"], {}, None),
        ("hi", "hi", [], {}, None),
        ("hi LO", "hi LO", ["O", "LO"], {"include_stop_str_in_output": True}, "LO"),
    ],
)
def test_the_stop_sequence_is_told(
    generated: str, text: str, stops: list[str], more: dict[str, Any], found: str | None
) -> None:
    """Of those that end first the engine takes the longest; here one is a beginning of another."""
    asked: Any = job_of(stop=stops, **more)
    tokenizer = asked.base.tokenizer
    asked.__dict__["choice"] = lambda _: TextChoice(tokenizer)
    message = MessageTurn(asked)
    message.reason = "stop"
    message._text = text
    message._token_ids = tokenizer.encode(generated)
    reason = "end_turn" if found is None else "stop_sequence"
    assert message.whole()["stop_reason"] == reason
    assert message.whole()["stop_sequence"] == found

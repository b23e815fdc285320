"""The items of a response, and the events that tell them."""

from typing import Any

from multilora_gateway.responses.body import ResponsesBody
from multilora_gateway.responses.turn import ResponseTurn
from support.gateway import turns
from support.gateway.turns import called, end, job_of, more, said, streamed, thought, types_of

ALL = (thought("h"), thought("m"), said("o"), said("k"), called("add", "{"), more("}"))


def turn(*chunks: turns.Chunk, **job: Any) -> ResponseTurn:
    body = ResponsesBody.model_validate({"input": "hi", "metadata": {"a": "b"}, "user": "u"})
    return ResponseTurn(body, job_of(*chunks, **job))


def test_every_item_begins_grows_and_ends() -> None:
    events = streamed(turn(*ALL, end("tool_calls")))
    assert types_of(events) == [
        f"response.{name}"
        for name in (
            "created", "in_progress",
            "output_item.added", "content_part.added", "reasoning_text.delta",
            "reasoning_text.delta", "reasoning_text.done", "content_part.done", "output_item.done",
            "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
            "output_text.done", "content_part.done", "output_item.done",
            "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
            "function_call_arguments.done", "output_item.done",
            "completed",
        )
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    places = [event["output_index"] for event in events if "output_index" in event]
    assert places == [0] * 7 + [1] * 7 + [2] * 5


def test_the_last_event_is_the_whole_response() -> None:
    last = streamed(turn(*ALL, end("tool_calls")))[-1]["response"]
    turns.alike(lambda: turn(*ALL, end("tool_calls")), last)
    reasoning, message, call = last["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert message["content"][0]["text"] == "ok" and message["role"] == "assistant"
    assert (call["call_id"], call["name"], call["arguments"]) == ("call_add", "add", "{}")
    assert {item["status"] for item in last["output"]} == {last["status"]} == {"completed"}
    usage = last["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (3, 7, 10)
    assert usage["output_tokens_details"] == {"reasoning_tokens": 2}
    assert (last["metadata"], last["user"], last["store"]) == ({"a": "b"}, "u", False)


def test_an_answer_that_is_cut_off_is_incomplete() -> None:
    for last in (said("o"), called("add", "{")):
        *_, event = streamed(turn(thought("h"), last, end("length")))
        response = event["response"]
        assert event["type"] == "response.incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]


def test_an_error_in_the_stream_fails_the_response() -> None:
    *_, event = streamed(turn(said("o"), fails=True))
    assert event["type"] == "response.failed" and event["response"]["status"] == "failed"
    assert event["response"]["error"] == {"code": "server_error", "message": "broken"}


def test_an_empty_answer_is_an_empty_message() -> None:
    """Agents ask again as long as no message comes."""
    (item,) = streamed(turn(end("stop")))[-1]["response"]["output"]
    assert item["type"] == "message" and item["content"][0]["text"] == ""


def test_logprobs_stand_beside_the_text_they_are_of() -> None:
    events = streamed(turn(said("", True), said("a"), said("b", True), said("", True), end("stop")))
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [len(event["logprobs"]) for event in deltas] == [1, 1, 1]
    (item,) = events[-1]["response"]["output"]
    assert item["content"][0]["logprobs"] == [turns.ENTRY] * 3
    begun = next(event for event in events if event["type"] == "response.content_part.added")
    assert begun["part"]["logprobs"] == []


def test_logprobs_of_a_call_begin_no_text() -> None:
    chunks = (called("add", "{}"), said("", True), end("tool_calls"))
    (item,) = streamed(turn(*chunks))[-1]["response"]["output"]
    assert item["type"] == "function_call"

"""A chat of the OpenAI API's form → what the engine is asked for."""

import asyncio
import dataclasses
from typing import Any, cast

import pytest
import tokenizers

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import GatewayError
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.generation.parallel import GenerationResult
from multilora_gateway.http.access import Caller
from multilora_gateway.openai.chat import ChatBody, chat_job
from multilora_gateway.openai.job import CompletionJob
from multilora_gateway.settings import Settings
from multilora_text.chat_template import ChatTemplates
from multilora_text.renderer import TemplateRenderer
from multilora_text.tokenizer import Tokenizer
from support.chats import RENDERER, only
from support.gateway.tgi import MAX_TOTAL, base_model

HELLO = [{"role": "user", "content": "hello"}]
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
LISTS_TOOLS = (
    "{{ messages[0].content }}{% for tool in tools or [] %} {{ tool.function.name }}{% endfor %}"
)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


class Server:
    """Knows its base, and has one chat template for every adapter."""

    generating = 0

    def __init__(self, base: ServedModel | None = None, template: str = LISTS_TOOLS) -> None:
        self._base = base or base_model()
        self._template = template
        self.asked: list[tuple[str, str]] = []

    async def base(self) -> ServedModel:
        return self._base

    async def has_adapter(self, name: str) -> bool:
        return name != "base"

    async def templates(self, adapter_id: str, token: str) -> ChatTemplates:
        self.asked.append((adapter_id, token))
        if adapter_id.startswith("endless"):
            return only(ENDLESS + adapter_id)
        return only("{{ raise_exception('no') }}" if adapter_id == "refuses" else self._template)


async def job(
    server: Server | None = None, renderer: TemplateRenderer = RENDERER, **fields: Any
) -> CompletionJob:
    body = ChatBody.model_validate({"model": "base", "messages": HELLO, **fields})
    context = RequestContext(cast(Backend, server or Server()), renderer, Settings(), Caller())
    return await chat_job(body, context)


def prepared(server: Server | None = None, **fields: Any) -> CompletionJob:
    return asyncio.run(job(server, **fields))


def prompt_of(**fields: Any) -> str:
    (request,) = prepared(**fields).requests
    return base_model().tokenizer.decode(request.prompt_ids)


def test_a_private_adapter_and_its_template_are_asked_for_with_the_token() -> None:
    server = Server()
    (request,) = prepared(server, model="org/a", api_token="hf_x").requests
    assert server.asked == [("org/a", "hf_x")]
    assert (request.adapter_id, request.adapter_token) == ("org/a", "hf_x")


def test_the_template_is_told_the_tools_that_may_be_called() -> None:
    assert prompt_of() == prompt_of(tools=[ADD], tool_choice="none") == "hello"
    assert prompt_of(tools=[ADD]) == "hello add"


def test_the_template_is_told_what_peers_tell_it() -> None:
    seen = "{{ documents }} {{ guideline }} {{ reasoning_effort }} {{ enable_thinking }}"
    asked = {"documents": [{"text": "d"}], "guideline": "g", "reasoning_effort": "none"}
    server = Server(template=seen)
    (request,) = prepared(server, **asked).requests
    assert base_model().tokenizer.decode(request.prompt_ids) == "[{'text': 'd'}] g none False"
    kept = prepared(server, **asked, chat_template_kwargs={"enable_thinking": True})
    assert base_model().tokenizer.decode(kept.requests[0].prompt_ids).endswith("none True")


def test_a_tool_prompt_ends_the_last_message_where_there_are_tools() -> None:
    assert prompt_of(tools=[ADD], tool_prompt="Call one.") == "hello\n---\nCall one. add"
    assert prompt_of(tool_prompt="Call one.") == "hello"
    call = {"function": {"name": "add", "arguments": {}}}
    null = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    assert prompt_of(messages=null, tools=[ADD], tool_prompt="?") == "\n---\n? add"


def test_a_function_may_be_chosen_by_its_name() -> None:
    other = {"type": "function", "function": {"name": "other"}}
    (request,) = prepared(tools=[ADD, other], tool_choice="add").requests
    asked = {"type": "function", "function": {"name": "add"}}
    (same,) = prepared(tools=[ADD, other], tool_choice=asked).requests
    assert request.sampling == same.sampling and "grammar" in request.sampling
    with pytest.raises(GatewayError, match="there is no tool 'sub' in tools"):
        prepared(tools=[ADD], tool_choice="sub")


def message_of(job: CompletionJob, text: str) -> dict[str, Any]:
    return job.choice(0).whole(GenerationResult(text, (), "stop"))["message"]


def test_the_template_decides_how_answers_are_read() -> None:
    thinks = Server(template="{{ messages[0].content }}{# </think> [TOOL_CALLS] #}<think>\n")
    text = 'hm</think>So.[TOOL_CALLS]add[ARGS]{"a": 1}'
    message = message_of(prepared(thinks, model="org/a", tools=[ADD]), text)
    (call,) = message["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": '{"a": 1}'} and len(call["id"]) == 9
    assert (message["reasoning_content"], message["content"]) == ("hm", "So.")
    without = message_of(prepared(thinks, tools=[ADD], include_reasoning=False), text)
    assert "reasoning_content" not in without and without["content"] == "So."
    constraints: list[dict[str, Any]] = [
        {"guided_choice": ["So."]}, {"tools": [ADD], "tool_choice": "required"}
    ]  # fmt: skip
    for fields in constraints:
        bound = prepared(thinks, **fields)
        assert bound.requests[0].sampling["grammar"]["after"] == "</think>"
        assert message_of(bound, "hm</think>So.")["reasoning_content"] == "hm"
        assert "after" not in prepared(**fields).requests[0].sampling["grammar"]
    assert message_of(prepared(tools=[ADD]), text)["content"] == text


@pytest.mark.parametrize(
    ("begun", "thoughts", "text"),
    [("<think>so", " it is", "Yes"), ("So", None, " it is</think>Yes")],
)
def test_a_continued_message_tells_how_its_rest_is_read(
    begun: str, thoughts: str | None, text: str
) -> None:
    shows = Server(template="{{ messages[-1].content }}{# </think> #}")
    messages = [*HELLO, {"role": "assistant", "content": begun}]
    job = prepared(shows, model="org/a", messages=messages, continue_final_message=True)
    message = message_of(job, " it is</think>Yes")
    assert (message["reasoning_content"], message["content"]) == (thoughts, text)


def test_special_tokens_are_shown_where_they_mark_calls() -> None:
    backend = tokenizers.Tokenizer.from_str(base_model().tokenizer.to_json())
    backend.add_special_tokens(["[TOOL_CALLS]"])
    server = Server(
        dataclasses.replace(base_model(), tokenizer=Tokenizer(backend)), "hi{# [TOOL_CALLS] #}"
    )
    asked: list[dict[str, Any]] = [
        {"tools": [ADD]}, {"tools": [ADD], "skip_special_tokens": True}, {},
        {"tools": [ADD], "tool_choice": "none"}, {"tools": [ADD], "tool_choice": "required"},
    ]  # fmt: skip
    sampling = [prepared(server, **fields).requests[0].sampling for fields in asked]
    shows = [each.get("skip_special_tokens") is False for each in sampling]
    assert shows == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 2}, slice(-2, None)),
        ({"truncate_prompt_tokens": 2, "truncation_side": "right"}, slice(2)),
        ({"truncate_prompt_tokens": 99}, slice(None)),
        ({"truncate_prompt_tokens": -1, "max_tokens": MAX_TOTAL - 2}, slice(-2, None)),
        ({"truncate_prompt_tokens": -1}, slice(None)),
    ],
)
def test_a_prompt_is_truncated(fields: dict[str, Any], kept: slice) -> None:
    (whole,), (cut,) = prepared().requests, prepared(**fields).requests
    assert len(whole.prompt_ids) > 2 and cut.prompt_ids == whole.prompt_ids[kept]


def test_nothing_is_left_of_no_prompt() -> None:
    with pytest.raises(GatewayError, match="truncate_prompt_tokens leaves no prompt; send"):
        prepared(truncate_prompt_tokens=0)


def test_options_of_a_stream_need_one() -> None:
    every = {"include_usage": True, "continuous_usage_stats": True}
    for options, want in (
        ({}, "no chunk"),
        ({"continuous_usage_stats": True}, "no chunk"),
        ({"include_usage": True}, "last chunk"),
        (every, "every chunk"),
    ):
        assert prepared(stream=True, stream_options=options).usage_in_stream == want
    for stream in (None, False):
        with pytest.raises(GatewayError, match="stream_options needs stream true") as caught:
            prepared(stream=stream, stream_options={"include_usage": False})
        assert caught.value.param == "stream_options"
        assert prepared(stream=stream, stream_options={}).requests


def test_only_a_forced_call_has_a_grammar() -> None:
    (free,) = prepared(tools=[ADD]).requests
    (forced,) = prepared(tools=[ADD], tool_choice="required").requests
    assert "grammar" not in free.sampling
    assert forced.sampling["grammar"]["type"] == "json"


@pytest.mark.parametrize(
    "constraint",
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a+"}},
        {"guided_choice": ["yes", "no"]},
    ],
)
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_forced_call_leaves_room_for_no_other_constraint(constraint: Any, choice: Any) -> None:
    with pytest.raises(GatewayError, match="leave out either tool_choice or response_format"):
        prepared(tools=[ADD], tool_choice=choice, **constraint)
    assert prepared(tools=[ADD], tool_choice=choice, response_format={"type": "text"}).requests
    assert prepared(tools=[ADD], **constraint).requests


def test_choices_are_calls_of_the_same_prompt() -> None:
    job = prepared(n=3, seed=7, max_completion_tokens=5, max_tokens=9)
    assert [request.sampling["seed"] for request in job.requests] == [7, 8, 9]
    assert {request.sampling["max_tokens"] for request in job.requests} == {5}
    assert len({tuple(request.prompt_ids) for request in job.requests}) == 1
    (whole,) = prepared().requests
    assert whole.sampling["max_tokens"] == MAX_TOTAL - len(whole.prompt_ids)


def test_more_choices_than_ever_run_at_once_are_refused() -> None:
    small = dataclasses.replace(base_model(), max_concurrent_requests=2)
    assert len(prepared(Server(small), n=2).requests) == 2
    with pytest.raises(GatewayError, match=r"at most 2 .*smaller n"):
        prepared(Server(small), n=3)


@pytest.mark.parametrize("name", ["messages", "tools"])
def test_a_templates_own_variables_cannot_be_replaced(name: str) -> None:
    with pytest.raises(GatewayError, match=f"must not hold {name}"):
        prepared(chat_template_kwargs={name: []})


def test_chats_go_on_beside_harmful_templates() -> None:
    """More of them than asyncio has threads for what would block the event loop."""

    async def run() -> None:
        await job()
        attacks = [asyncio.create_task(job(model=f"endless{n}")) for n in range(50)]
        attacks += [asyncio.create_task(job(model="endless")) for _ in range(50)]
        await asyncio.sleep(0)
        for _ in range(20):
            assert (await job()).requests
            assert await asyncio.to_thread(lambda: True)
        assert sum(attack.done() for attack in attacks) < 50
        for attack in attacks:
            attack.cancel()
        await asyncio.gather(*attacks, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_chat_that_nobody_can_render_now_may_be_sent_again() -> None:
    renderer = TemplateRenderer()
    renderer.close()
    with pytest.raises(GatewayError, match="try again later") as caught:
        asyncio.run(job(renderer=renderer))
    assert caught.value.status == 503 and caught.value.headers["Retry-After"]
    with pytest.raises(GatewayError, match="the chat template refuses these messages") as caught:
        prepared(messages=[{"role": "user", "content": "x"}], tools=[ADD], model="refuses")
    assert caught.value.status == 422


@pytest.mark.parametrize("depth", [100, 900, 985])
def test_deeply_nested_tools_are_the_clients_fault(depth: int) -> None:
    parameters: dict[str, Any] = {}
    for _ in range(depth):
        parameters = {"items": parameters}
    tool = {"type": "function", "function": {"name": "add", "parameters": parameters}}
    if depth == 100:
        assert prepared(tools=[tool], tool_choice="required").requests
        return
    for choice in ("required", "auto"):
        try:
            prepared(tools=[tool], tool_choice=choice)
        except GatewayError as error:
            assert error.status == 422
        else:
            assert choice == "auto"


def test_one_of_the_answers_is_told_of_the_prompt_that_they_share() -> None:
    asked = [
        one.sampling.get("prompt_logprobs") for one in prepared(n=3, prompt_logprobs=2).requests
    ]
    assert asked == [2, None, None]
    assert not any("prompt_logprobs" in one.sampling for one in prepared(n=3).requests)

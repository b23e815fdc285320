"""/v1/chat/completions: the body, and the job it makes."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from multilora_gateway.backend.served_model import BaseModel
from multilora_gateway.errors import invalid
from multilora_gateway.generation.chat_messages import Message, template_messages
from multilora_gateway.generation.job import Call
from multilora_gateway.generation.model_name import Target, resolve
from multilora_gateway.http.json_values import Items
from multilora_gateway.openai.chat_choice import ChatChoice
from multilora_gateway.openai.job import Job, Place
from multilora_gateway.openai.sampling import Common, check_count, choices, room
from multilora_gateway.openai.tools.format import ToolFormat, tool_format
from multilora_gateway.openai.tools.parser import JsonParser, ToolParser
from multilora_gateway.openai.tools.tools import Tool, ToolChoice, call_grammar, is_forced, usable
from multilora_gateway.openai.vllm import False_, True_
from multilora_text.chat_template import ChatTemplate
from multilora_text.errors import TextError

MAX_TOP_LOGPROBS = 20
_OWN_VARIABLES = ("messages", "tools", "documents", "template", "self")


class ChatBody(Common):
    messages: Items[Message]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Items[Tool] | None = None
    tool_choice: ToolChoice | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: Items[Literal["text"]] | None = None
    add_generation_prompt: True_ = None
    add_special_tokens: False_ = None
    continue_final_message: False_ = None
    echo: False_ = None
    # Taken without effect.
    parallel_tool_calls: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None

    def most_logprobs(self) -> int | None:
        """The engine's `logprobs`."""
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs needs logprobs true; set it", "top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


async def chat_job(body: ChatBody, place: Place) -> Job:
    """Raises GatewayError."""
    base = await place.backend.base()
    logprobs = body.most_logprobs()
    check_count(body.n or 1, base)
    sampling = body.sampling(base, place.settings)
    tools = usable(body.tools, body.tool_choice)
    forced = is_forced(body.tool_choice)
    if forced and "grammar" in sampling:
        raise invalid(
            "an answer has one constraint, and tool_choice asks for a call; leave out either "
            "tool_choice or response_format, structured_outputs and guided_…",
            "tool_choice",
        )
    messages = template_messages(body.messages)
    target = await resolve(place.backend, place.settings, place.caller, body.model, body.wish)
    own = await place.backend.template(target.adapter_id, body.wish.token)
    prompt = await _encode(body, base, own, messages, tools)
    template = own or base.tokenizer.chat_template
    form = tool_format(place.settings.tool_call_parser, template.source if template else "")
    if forced:
        sampling["grammar"] = call_grammar(tools, form.arguments)
    asked = body.max_completion_tokens or body.max_tokens
    sampling["max_tokens"] = room(len(prompt), asked, None, base)
    if logprobs is not None:
        sampling["logprobs"] = logprobs
    calls = [
        Call(prompt, target.adapter_id, each, adapter_token=body.wish.token)
        for each in choices(sampling, body.n or 1, body.seed)
    ]
    return _job(body, base, target, calls, _Parsers(form, forced, tools))


class _Parsers:
    """Makes the parser of each answer."""

    def __init__(self, form: ToolFormat, forced: bool, tools: Sequence[Tool]) -> None:
        self._parser = JsonParser if forced else form.parser
        self._names = {tool.function.name for tool in tools}

    def new(self) -> ToolParser | None:
        return self._parser(self._names) if self._names else None


def _job(
    body: ChatBody, base: BaseModel, target: Target, calls: list[Call], parsers: _Parsers
) -> Job:
    return Job(
        kind="chatcmpl",
        object="chat.completion",
        chunk_object="chat.completion.chunk",
        target=target,
        base=base,
        calls=calls,
        choice=lambda _: ChatChoice(base.tokenizer, bool(body.logprobs), parsers.new()),
        prompt_tokens=len(calls[0].prompt_ids),
        with_usage=body.with_usage,
    )


async def _encode(
    body: ChatBody,
    base: BaseModel,
    template: ChatTemplate | None,
    messages: list[dict[str, Any]],
    tools: Sequence[Tool],
) -> list[int]:
    """A template is somebody's program and may take long, so it runs beside the event loop."""
    variables = dict(body.chat_template_kwargs or {})
    for name in _OWN_VARIABLES:
        if name in variables:
            raise invalid(f"chat_template_kwargs must not hold {name}", "chat_template_kwargs")
    variables["tools"] = [tool.for_template() for tool in tools] or None
    variables["documents"] = None
    encode = base.tokenizer.encode_chat
    try:
        prompt = await asyncio.to_thread(encode, messages, template, **variables)
    except TextError as error:
        raise invalid(str(error), "messages") from None
    if not prompt:
        raise invalid("the chat template makes an empty prompt of these messages", "messages")
    return prompt

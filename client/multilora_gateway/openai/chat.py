"""/v1/chat/completions: the body, its job, and the JSON of its choices."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from multilora_api.sampling import MAX_LOGPROBS
from multilora_gateway.backend.messages import Delta, Token
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import invalid
from multilora_gateway.generation.budget import TokenBudget
from multilora_gateway.generation.chat_messages import ChatMessage, template_messages
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.generation.job import generation_requests
from multilora_gateway.generation.model_name import resolve
from multilora_gateway.generation.parallel import GenerationResult
from multilora_gateway.generation.prompt import encode_chat
from multilora_gateway.http.json_values import Items
from multilora_gateway.openai.job import CompletionJob
from multilora_gateway.openai.logprobs import chat_logprobs
from multilora_gateway.openai.sampling import (
    CompletionFields,
    check_count,
    choice_seeds,
    max_tokens,
)
from multilora_gateway.openai.tools.call_reader import MoreArguments, ToolCall
from multilora_gateway.openai.tools.parser import (
    JsonParser,
    Part,
    ToolParser,
    tool_format,
)
from multilora_gateway.openai.tools.tools import Tool, ToolChoice, call_grammar, is_forced, usable
from multilora_gateway.openai.vllm import False_, True_
from multilora_text.chat_template import ChatTemplates
from multilora_text.errors import TextError
from multilora_text.tokenizer import Tokenizer

_OWN_VARIABLES = ("messages", "tools", "documents", "template", "self")


class ChatBody(CompletionFields):
    messages: Items[ChatMessage]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Items[Tool] | None = None
    tool_choice: ToolChoice | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: Items[Literal["text"]] | None = None
    add_generation_prompt: True_ = None
    add_special_tokens: False_ = None
    continue_final_message: False_ = None
    echo: False_ = None
    # Accepted without effect.
    parallel_tool_calls: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None

    def most_logprobs(self) -> int | None:
        """The engine's `logprobs`."""
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs needs logprobs true; set it", "top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


async def chat_job(body: ChatBody, context: RequestContext) -> CompletionJob:
    """Raises GatewayError."""
    base = await context.backend.base()
    logprobs, n = body.most_logprobs(), body.n or 1
    check_count(n, base)
    sampling = body.sampling(base, context.settings)
    tools, forced = usable(body.tools, body.tool_choice), is_forced(body.tool_choice)
    if forced and "grammar" in sampling:
        raise invalid(
            "an answer has one constraint, and tool_choice asks for a call; leave out either "
            "tool_choice or response_format, structured_outputs and guided_…",
            "tool_choice",
        )
    messages = template_messages(body.messages)
    model = await resolve(context, body.model, body.selection)
    own = await context.backend.templates(model.adapter_id, body.selection.token)
    prompt = await _encode(body, context, base, own, messages, tools)
    template = base.tokenizer.template(own, bool(tools))
    form = tool_format(context.settings.tool_call_parser, template.source)
    if forced:
        sampling["grammar"] = call_grammar(tools, form.arguments)
    if logprobs is not None:
        sampling["logprobs"] = logprobs
    asked = body.max_completion_tokens or body.max_tokens

    def limited(budget: TokenBudget) -> Mapping[str, Any]:
        return {**sampling, "max_tokens": max_tokens(budget, asked)}

    requests = generation_requests(
        [prompt],
        choice_seeds(body.seed, n),
        limited,
        base,
        adapter_id=model.adapter_id,
        adapter_token=body.selection.token,
    )
    parser_type = JsonParser if forced else form.parser
    names = {tool.function.name for tool in tools}

    def choice(_: int) -> ChatChoice:
        parser = parser_type(names) if names else None
        return ChatChoice(base.tokenizer, bool(body.logprobs), parser)

    return CompletionJob(
        context=context,
        base=base,
        requests=requests,
        id_prefix="chatcmpl",
        object="chat.completion",
        chunk_object="chat.completion.chunk",
        model=model,
        choice=choice,
        prompt_tokens=len(prompt),
        with_usage=body.with_usage,
    )


async def _encode(
    body: ChatBody,
    context: RequestContext,
    base: ServedModel,
    own: ChatTemplates,
    messages: list[dict[str, Any]],
    tools: Sequence[Tool],
) -> list[int]:
    variables = dict(body.chat_template_kwargs or {})
    for name in _OWN_VARIABLES:
        if name in variables:
            raise invalid(f"chat_template_kwargs must not hold {name}", "chat_template_kwargs")
    variables["tools"] = [tool.for_template() for tool in tools] or None
    try:
        prompt = await encode_chat(context.renderer, base.tokenizer, messages, own, **variables)
    except TextError as error:
        raise invalid(str(error), "messages") from None
    if not prompt:
        raise invalid("the chat template makes an empty prompt of these messages", "messages")
    return prompt


class ChatChoice:
    """A Choice (see openai.job). Without a parser all text is content."""

    def __init__(self, tokenizer: Tokenizer, logprobs: bool, parser: ToolParser | None) -> None:
        self._tokenizer = tokenizer
        self._wants_logprobs = logprobs
        self._parser = parser
        self._calls = 0

    def opening(self) -> list[dict[str, Any]]:
        return [_chunk({"role": "assistant", "content": ""}, None)]

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        bodies = [self._body(part) for part in self._parts(delta.text, bool(delta.finish_reason))]
        logprobs = self._logprobs(delta.tokens)
        if logprobs and not bodies:
            bodies = [{"content": ""}]
        # Only the first chunk has the logprobs, so that each token is reported once.
        chunks = [_chunk(body, None if number else logprobs) for number, body in enumerate(bodies)]
        if delta.finish_reason:
            chunks.append(_chunk({}, None, self._reason(delta.finish_reason)))
        return chunks

    def whole(self, result: GenerationResult) -> dict[str, Any]:
        parts = self._parts(result.text, True)
        text = "".join(part for part in parts if isinstance(part, str))
        calls: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, ToolCall):
                calls.append(_tool_call(part))
            elif isinstance(part, MoreArguments):
                calls[-1]["function"]["arguments"] += part.text
        self._calls += len(calls)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not text else text,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = calls
        return {
            "message": message,
            "logprobs": self._logprobs(result.tokens),
            "finish_reason": self._reason(result.finish_reason),
        }

    def _parts(self, text: str, last: bool) -> list[Part]:
        if self._parser is None:
            return [text] if text else []
        return self._parser.push(text) + (self._parser.finish() if last else [])

    def _body(self, part: Part) -> dict[str, Any]:
        if isinstance(part, str):
            return {"content": part}
        if isinstance(part, MoreArguments):
            more = {"index": self._calls - 1, "function": {"arguments": part.text}}
            return {"tool_calls": [more]}
        self._calls += 1
        return {"tool_calls": [{"index": self._calls - 1, **_tool_call(part)}]}

    def _reason(self, reason: str) -> str:
        return "tool_calls" if self._calls and reason == "stop" else reason

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        return chat_logprobs(tokens, self._tokenizer) if self._wants_logprobs and tokens else None


def _chunk(
    body: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None = None
) -> dict[str, Any]:
    return {"delta": body, "logprobs": logprobs, "finish_reason": reason}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }

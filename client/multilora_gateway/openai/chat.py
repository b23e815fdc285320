"""/v1/chat/completions: the body, its job, and the JSON of its choices."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from multilora_api.sampling import MAX_LOGPROBS
from multilora_gateway.backend.messages import Delta, GenerationRequest, Token
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import invalid
from multilora_gateway.generation.budget import TokenBudget
from multilora_gateway.generation.chat_messages import ChatMessage, template_messages
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.generation.job import generation_requests
from multilora_gateway.generation.model_name import resolve
from multilora_gateway.generation.parallel import GenerationResult
from multilora_gateway.generation.parsing.parser import AnswerFormat, AnswerParser, answer_format
from multilora_gateway.generation.parsing.parts import (
    AnswerPart,
    MoreArguments,
    ParsedAnswer,
    Reasoning,
    ToolCall,
)
from multilora_gateway.generation.prompt import encode_chat
from multilora_gateway.http.json_values import (
    Absent,
    False_,
    Items,
    Schema,
    Text,
    only,
)
from multilora_gateway.openai.job import CompletionJob
from multilora_gateway.openai.logprobs import chat_logprobs
from multilora_gateway.openai.sampling import (
    CompletionFields,
    check_count,
    choice_seeds,
    max_tokens,
)
from multilora_gateway.openai.tools import Tool, ToolChoice, call_grammar, is_forced, usable
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
    parallel_tool_calls: bool | None = None
    tool_prompt: Text | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: Items[Schema] | None = None
    guideline: Text | None = None
    include_reasoning: bool | None = None
    reasoning_effort: Text | None = None
    modalities: Items[Literal["text"]] | None = None
    add_generation_prompt: bool | None = None
    add_special_tokens: False_ = None
    continue_final_message: bool | None = None
    echo: False_ = None
    return_prompt_text: False_ = None
    audio: Absent = None
    chat_template: Annotated[Any, only(instead="templates come with the model")] = None
    function_call: Annotated[Any, only("none", "auto", instead="send tool_choice")] = None
    functions: Annotated[Any, only([], instead="send them as tools")] = None
    web_search_options: Absent = None
    # Accepted without effect.
    media_io_kwargs: Any = None
    mm_processor_kwargs: Any = None
    prediction: Any = None
    verbosity: Any = None

    def most_logprobs(self) -> int | None:
        """The engine's `logprobs`."""
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs needs logprobs true; set it", "top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def variables(self) -> dict[str, Any]:
        """What a template may know besides the messages and tools; raises GatewayError."""
        variables = dict(self.chat_template_kwargs or {})
        for name in _OWN_VARIABLES:
            if name in variables:
                raise invalid(f"chat_template_kwargs must not hold {name}", "chat_template_kwargs")
        variables["documents"] = self.documents
        if self.add_generation_prompt is not None:
            variables["add_generation_prompt"] = self.add_generation_prompt
        if self.guideline:
            variables["guideline"] = self.guideline
        if self.reasoning_effort:  # as vLLM tells templates
            variables["reasoning_effort"] = self.reasoning_effort
            variables.setdefault("enable_thinking", self.reasoning_effort != "none")
        return variables

    @property
    def continues(self) -> bool:
        """Whether the prompt ends in the middle of the last message; raises GatewayError."""
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid(
                "an answer cannot continue the last message and be a new one; leave out "
                "continue_final_message or add_generation_prompt",
                "continue_final_message",
            )
        return bool(self.continue_final_message)


async def chat_job(body: ChatBody, context: RequestContext) -> CompletionJob:
    """Raises GatewayError."""
    base = await context.admitted()
    logprobs, n = body.most_logprobs(), body.n or 1
    check_count(n, base)
    sampling = body.sampling(base, context.settings)
    tools, forced = usable(body.tools, body.tool_choice), _forces_call(body, sampling)
    messages = template_messages(body.messages)
    model = await resolve(context, body.model, body.selection)
    own = await context.backend.templates(model.adapter_id, body.selection.token)
    prompt = await chat_prompt(body, context, base, own, messages, tools)
    asked = body.max_completion_tokens or body.max_tokens
    prompt = body.truncated(prompt, base, asked or 1)
    template = base.tokenizer.template(own, bool(tools)).source
    form = answer_format(
        context.settings,
        template,
        base.tokenizer,
        prompt,
        names={tool.function.name for tool in tools},
        forced=forced,
        bound="grammar" in sampling,
        one_call=body.parallel_tool_calls is False,
        continued=messages[-1]["content"] if body.continues else "",
    )
    sampling |= _needed(form, tools, sampling.get("grammar"), base.tokenizer)
    if logprobs is not None:
        sampling["logprobs"] = logprobs

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
    return CompletionJob(
        context=context,
        base=base,
        requests=_told_once(requests, body.prompt_logprobs),
        id_prefix="chatcmpl",
        object="chat.completion",
        chunk_object="chat.completion.chunk",
        model=model,
        choice=lambda _: _choice(body, base.tokenizer, form),
        prompt_tokens=len(prompt),
        usage_in_stream=body.usage_in_stream(),
        token_ids="of answer" if body.return_token_ids else "nowhere",
        prompt_logprobs=body.prompt_logprobs,
        prompt_place="of answer",
    )


def _forces_call(body: ChatBody, sampling: Mapping[str, Any]) -> bool:
    """Whether the answer must be a call; GatewayError when something else binds it already."""
    if (forced := is_forced(body.tool_choice)) and "grammar" in sampling:
        raise invalid(
            "an answer has one constraint, and tool_choice asks for a call; leave out either "
            "tool_choice or response_format, structured_outputs and guided_…",
            "tool_choice",
        )
    return forced


def _choice(body: ChatBody, tokenizer: Tokenizer, form: AnswerFormat) -> "ChatChoice":
    thoughts = body.include_reasoning is not False
    ids = bool(body.return_tokens_as_token_ids)
    return ChatChoice(tokenizer, bool(body.logprobs), form, thoughts, ids)


def _needed(
    form: AnswerFormat,
    tools: Sequence[Tool],
    grammar: dict[str, Any] | None,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """The sampling parameters that answers of this format need; `grammar` binds one that is no
    forced call."""
    needed: dict[str, Any] = {}
    if form.forced:
        grammar = call_grammar(tools, form.tools.arguments)
    if grammar:
        needed["grammar"] = form.bound(grammar)
    if form.shows_special_tokens(tokenizer):
        needed["skip_special_tokens"] = False
    return needed


def _told_once(requests: list[GenerationRequest], most: int | None) -> list[GenerationRequest]:
    """The same, the first of them told of the prompt, which they share; None: none of them is."""
    if most is None:
        return requests
    first, *others = requests
    sampling = {**first.sampling, "prompt_logprobs": most}
    return [dataclasses.replace(first, sampling=sampling), *others]


async def chat_prompt(
    body: ChatBody,
    context: RequestContext,
    base: ServedModel,
    own: ChatTemplates,
    messages: list[dict[str, Any]],
    tools: Sequence[Tool],
) -> list[int]:
    """The token ids of a chat; raises GatewayError."""
    if tools and body.tool_prompt:
        messages = [*messages[:-1], _with_tool_prompt(messages[-1], body.tool_prompt)]
    variables = body.variables()
    variables["tools"] = [tool.for_template() for tool in tools] or None
    try:
        prompt = await encode_chat(
            context.renderer, base.tokenizer, messages, own, body.continues, **variables
        )
    except TextError as error:
        raise invalid(str(error), "messages") from None
    if not prompt:
        raise invalid("the chat template makes an empty prompt of these messages", "messages")
    return prompt


def _with_tool_prompt(message: dict[str, Any], prompt: str) -> dict[str, Any]:
    """The last message as TGI changes it where there are tools."""
    return {**message, "content": f"{message['content'] or ''}\n---\n{prompt}"}


class ChatChoice:
    """A Choice (see openai.job). Without `thoughts` those are left out."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        logprobs: bool,
        form: AnswerFormat,
        thoughts: bool = True,
        tokens_as_ids: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._tokens_as_ids = tokens_as_ids
        self._wants_logprobs = logprobs
        self._parser = AnswerParser(form)
        self._shows_thoughts = thoughts and form.reasoning is not None
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
            # TGI and vLLM, too, end with a delta whose content is empty.
            chunks.append(_chunk({"content": ""}, None, self._reason(delta.finish_reason)))
        return chunks

    def whole(self, result: GenerationResult) -> dict[str, Any]:
        parsed = ParsedAnswer.joined(self._parts(result.text, True))
        self._calls = len(parsed.calls)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None
            if not parsed.text and (parsed.calls or parsed.reasoning)
            else parsed.text,
            "refusal": None,
        }
        if self._shows_thoughts:
            message["reasoning_content"] = parsed.reasoning or None
        if parsed.calls:
            message["tool_calls"] = [_tool_call(call) for call in parsed.calls]
        return {
            "message": message,
            "logprobs": self._logprobs(result.tokens),
            "finish_reason": self._reason(result.finish_reason),
        }

    def _parts(self, text: str, last: bool) -> list[AnswerPart]:
        parts = self._parser.push(text) + (self._parser.finish() if last else [])
        return [part for part in parts if self._shows_thoughts or not isinstance(part, Reasoning)]

    def _body(self, part: AnswerPart) -> dict[str, Any]:
        if isinstance(part, str):
            return {"content": part}
        if isinstance(part, Reasoning):
            return {"reasoning_content": part.text}
        if isinstance(part, MoreArguments):
            more = {"index": self._calls - 1, "function": {"arguments": part.text}}
            return {"tool_calls": [more]}
        self._calls += 1
        return {"tool_calls": [{"index": self._calls - 1, **_tool_call(part)}]}

    def _reason(self, reason: str) -> str:
        return "tool_calls" if self._calls and reason == "stop" else reason

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not (self._wants_logprobs and tokens):
            return None
        return chat_logprobs(tokens, self._tokenizer, self._tokens_as_ids)


def _chunk(
    body: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None = None
) -> dict[str, Any]:
    return {"delta": body, "logprobs": logprobs, "finish_reason": reason}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }

"""The body of POST /v1/responses → the chat that it asks for."""

from typing import Annotated, Any, Literal

from pydantic import Field

from multilora_api.sampling import MAX_LOGPROBS
from multilora_gateway.errors import invalid
from multilora_gateway.http.json_values import (
    Absent,
    False_,
    Fields,
    Items,
    Schema,
    Text,
    Value,
    only,
)
from multilora_gateway.openai.chat import ChatBody
from multilora_gateway.openai.sampling import JsonSchemaFormat, ResponseFormat
from multilora_gateway.openai.tools import (
    AllowedFunctions,
    AllowedTools,
    ChosenFunction,
    ChosenTool,
    Function,
    FunctionName,
    Tool,
    ToolChoice,
)
from multilora_gateway.openai.turn import TurnFields
from multilora_gateway.responses.items import chat_messages

_STATELESS = "nothing is stored here: send the whole conversation in input"
LOGPROBS = "message.output_text.logprobs"  # of `include`


class FunctionTool(Fields):
    type: Literal["function"]  # others run at OpenAI's servers
    name: FunctionName
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None
    # Accepted without effect.
    allowed_callers: Value = None
    defer_loading: Value = None
    output_schema: Value = None


class NamedFunction(Fields):
    type: Literal["function"]
    name: Text


class AllowedFunctionTools(Fields):
    """Only some of the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Items[NamedFunction]


class TextFormat(Fields):
    type: Literal["text", "json_object", "json_schema"]
    schema_: Schema | None = Field(default=None, alias="schema")
    # A schema binds the answer whatever these say.
    name: Value = None
    description: Value = None
    strict: Value = None


class TextOptions(Fields):
    format: TextFormat | None = None
    verbosity: Value = None  # accepted without effect


class ReasoningOptions(Fields):
    effort: Text | None = None
    # Accepted without effect.
    context: Any = None
    generate_summary: Any = None
    mode: Any = None
    summary: Any = None


class ResponsesBody(TurnFields):
    input: Text | Items[Schema]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: Items[FunctionTool] | None = None
    tool_choice: (
        Literal["auto", "none", "required"] | NamedFunction | AllowedFunctionTools | None
    ) = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: Items[Text] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    metadata: Schema | None = None
    background: False_ = None
    conversation: Annotated[Any, only(instead=_STATELESS)] = None
    max_tokens: Annotated[Any, only(instead="send max_output_tokens")] = None
    previous_response_id: Annotated[Any, only(instead=_STATELESS)] = None
    prompt: Annotated[Any, only(instead="send its text as instructions")] = None
    response_format: Annotated[Any, only(instead="send text.format")] = None
    context_management: Annotated[Any, only([])] = None
    truncation: Annotated[Any, only("disabled", instead="shorten the input")] = None
    image: Absent = None
    # Accepted without effect.
    user: Value = None
    access_programs: Any = None
    background_options: Any = None
    max_tool_calls: Any = None  # of tools that run at the server; there are none

    def as_chat(self) -> ChatBody:
        """Raises GatewayError."""
        return self.chat(
            messages=chat_messages(self.input, self.instructions),
            max_tokens=self.max_output_tokens,
            tools=[Tool(function=_function(tool)) for tool in self.tools or ()] or None,
            tool_choice=self._tool_choice(),
            parallel_tool_calls=self.parallel_tool_calls,
            response_format=self._response_format(),
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
            logprobs=LOGPROBS in (self.include or ()) or None,
            top_logprobs=self.top_logprobs if LOGPROBS in (self.include or ()) else None,
        )

    def _tool_choice(self) -> ToolChoice | None:
        choice = self.tool_choice
        if isinstance(choice, NamedFunction):
            return _chosen(choice)
        if isinstance(choice, AllowedFunctionTools):
            allowed = AllowedFunctions(mode=choice.mode, tools=[*map(_chosen, choice.tools)])
            return AllowedTools(type="allowed_tools", allowed_tools=allowed)
        return choice

    def _response_format(self) -> ResponseFormat | None:
        form = self.text.format if self.text else None
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return ResponseFormat(type="json_object")
        if form.schema_ is None:
            raise invalid(
                'text.format needs a schema: {"type": "json_schema", "name": "answer", '
                '"schema": {…}}',
                "text",
            )
        return ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat(schema=form.schema_))


def _function(tool: FunctionTool) -> Function:
    return Function(name=tool.name, description=tool.description, parameters=tool.parameters)


def _chosen(named: NamedFunction) -> ChosenTool:
    return ChosenTool(function=ChosenFunction(name=named.name))

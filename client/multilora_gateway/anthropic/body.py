"""The bodies of POST /v1/messages and of its count of tokens → the chat that they ask for."""

from typing import Annotated, Any, Literal

from pydantic import Field

from multilora_gateway.anthropic.content import chat_messages
from multilora_gateway.errors import invalid
from multilora_gateway.generation.chat_messages import goes_on
from multilora_gateway.http.json_values import Absent, Fields, Items, Schema, Text, only
from multilora_gateway.openai.chat import ChatBody
from multilora_gateway.openai.sampling import JsonSchemaFormat, ResponseFormat
from multilora_gateway.openai.tools import (
    ChosenFunction,
    ChosenTool,
    Function,
    FunctionName,
    Tool,
    ToolChoice,
)
from multilora_gateway.openai.turn import TurnFields


class MessageTool(Fields):
    name: FunctionName
    input_schema: Schema
    description: str | None = None
    type: Literal["custom"] | None = None
    # Accepted without effect.
    allowed_callers: Any = None
    cache_control: Any = None
    defer_loading: Any = None
    eager_input_streaming: Any = None
    input_examples: Any = None
    strict: Any = None

    def for_chat(self) -> Tool:
        function = Function(
            name=self.name, description=self.description, parameters=self.input_schema
        )
        return Tool(function=function)


class MessageToolChoice(Fields):
    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: bool | None = None

    def for_chat(self) -> ToolChoice:
        """Raises GatewayError."""
        if self.type == "tool":
            if not self.name:
                raise invalid("tool_choice of type tool needs the name of one; send it")
            return ChosenTool(function=ChosenFunction(name=self.name))
        return "required" if self.type == "any" else self.type


class OutputFormat(Fields):
    type: Literal["json_schema"]
    schema_: Schema = Field(alias="schema")


class OutputConfig(Fields):
    format: OutputFormat | None = None
    effort: Text | None = None


class Thinking(Fields):
    """Whether the template lets the model reason. How long it does is up to the model."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    # Accepted without effect.
    budget_tokens: Any = None
    display: Any = None


class MessagesToCount(TurnFields):
    messages: Items[Schema]
    system: Text | Items[Schema] | None = None
    stop_sequences: Items[str] | None = None
    tools: Items[MessageTool] | None = None
    tool_choice: MessageToolChoice | None = None
    output_config: OutputConfig | None = None
    thinking: Thinking | None = None
    container: Absent = None
    context_management: Annotated[Any, only({})] = None
    mcp_servers: Annotated[Any, only([])] = None
    response_format: Annotated[Any, only(instead="send output_config.format")] = None
    stop: Annotated[Any, only(instead="send stop_sequences")] = None
    # Accepted without effect.
    cache_control: Any = None
    diagnostics: Any = None
    inference_geo: Any = None
    speed: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None

    def as_chat(self) -> ChatBody:
        """Raises GatewayError."""
        choice, output = self.tool_choice, self.output_config or OutputConfig()
        form: ResponseFormat | None = None
        if output.format:
            schema = JsonSchemaFormat(schema=output.format.schema_)
            form = ResponseFormat(type="json_schema", json_schema=schema)
        variables = dict(self.chat_template_kwargs or {})
        if self.thinking:
            variables.setdefault("enable_thinking", self.thinking.type != "disabled")
        messages = chat_messages(self.messages, self.system)
        return self.chat(
            messages=messages,
            continue_final_message=goes_on(messages),
            stop=self.stop_sequences,
            tools=[tool.for_chat() for tool in self.tools or ()] or None,
            tool_choice=choice.for_chat() if choice else None,
            parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
            response_format=form,
            reasoning_effort=output.effort,
            chat_template_kwargs=variables,
        )


class MessagesBody(MessagesToCount):
    def as_chat(self) -> ChatBody:
        if self.max_tokens is None:
            raise invalid("max_tokens is missing; it is required", "max_tokens")
        return super().as_chat()

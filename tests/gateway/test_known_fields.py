"""Fields that are known and not done: docs/from-tgi.md names each, and what peers' clients send is
known."""

import dataclasses
from pathlib import Path
from typing import Any

import huggingface_hub
import lorax.types
import pytest
import text_generation.types
from anthropic.types import message_create_params as anthropic_messages
from openai.types import completion_create_params as openai_completions
from openai.types.chat import completion_create_params as openai_chats
from openai.types.responses import response_create_params as openai_responses
from pydantic import BaseModel

from multilora_gateway.anthropic.body import MessagesBody, Thinking
from multilora_gateway.openai.chat import ChatBody
from multilora_gateway.openai.completions import CompletionBody
from multilora_gateway.openai.sampling import StreamOptions
from multilora_gateway.openai.tools import Function, Tool
from multilora_gateway.openai.vllm import StructuredOutputs
from multilora_gateway.responses.body import FunctionTool, ReasoningOptions, ResponsesBody
from multilora_gateway.routes.adapters import VllmLoad, VllmUnload
from multilora_gateway.tgi.parameters import GenerateRequest, Parameters

DOCS = Path(__file__).parents[2] / "docs/from-tgi.md"
KINDS = (
    ChatBody, CompletionBody, StreamOptions, StructuredOutputs, Parameters, GenerateRequest,
    VllmLoad, VllmUnload, ResponsesBody, ReasoningOptions, MessagesBody, Thinking, Function, Tool,
    FunctionTool,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_names_all_that_are_not_done(kind: type[BaseModel]) -> None:
    """Their values are of any type: nothing reads them."""
    table = DOCS.read_text()
    for name, field in kind.model_fields.items():
        assert field.annotation is not Any or f"`{name}`" in table, name


def names_of(kind: Any) -> set[str]:
    if dataclasses.is_dataclass(kind):
        return {field.name for field in dataclasses.fields(kind)}
    return {*kind.model_fields} if issubclass(kind, BaseModel) else {*kind.__annotations__}


@pytest.mark.parametrize(
    ("sent", "known"),
    [
        (openai_chats.CompletionCreateParamsStreaming, ChatBody),
        (openai_completions.CompletionCreateParamsStreaming, CompletionBody),
        (openai_responses.ResponseCreateParamsStreaming, ResponsesBody),
        (anthropic_messages.MessageCreateParamsStreaming, MessagesBody),
        (text_generation.types.ChatRequest, ChatBody),
        (text_generation.types.Parameters, Parameters),
        (text_generation.types.Request, GenerateRequest),
        (lorax.types.Parameters, Parameters),
        (huggingface_hub.ChatCompletionInput, ChatBody),
        (huggingface_hub.TextGenerationInputGenerateParameters, Parameters),
    ],
)
def test_what_clients_send_is_known(sent: Any, known: type[BaseModel]) -> None:
    assert names_of(sent) and not names_of(sent) - {*known.model_fields}

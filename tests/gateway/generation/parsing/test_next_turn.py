"""A call that the gateway makes of an answer is sent back: templates in the idioms of each family
show it as their model writes calls, which is parsed to the same call again."""

from dataclasses import replace
from typing import Any

import pytest

from multilora_gateway.generation.parallel import GenerationResult
from multilora_gateway.generation.parsing.formats import tool_format
from multilora_gateway.generation.parsing.parser import AnswerFormat
from multilora_gateway.openai.chat import ChatChoice
from multilora_text.messages import template_messages
from multilora_text.tokenizer import Tokenizer
from support.chats import chat, only
from support.tiny.tokenizers import byte_level

TOKENIZER = Tokenizer(byte_level())
NINE = (
    "{% if call.id is not defined or call.id | length != 9 %}"
    "{{ raise_exception('ids have 9 characters') }}{% endif %}"
)
CALLS = "{% for message in messages %}{% if message.role == 'assistant' %}"
RESULT = (
    "{% elif message.role in ['tool', 'ipython'] %}|{{ message.content }}"
    "{% elif message.role != 'user' %}{{ raise_exception('roles') }}{% endif %}{% endfor %}"
)
FAMILIES = {
    "hermes": CALLS + "{% for call in message.tool_calls %}{{ '<tool_call>\n{\"name\": \"' + "
    "call.function.name + '\", \"arguments\": ' }}{{ call.function.arguments | tojson }}"
    "{{ '}\n</tool_call>' }}{% endfor %}" + RESULT,
    "qwen3": CALLS + "{% if message.content is string %}{{ message.content }}{% endif %}"
    "{% for call in message.tool_calls %}{% if call.function %}{% set call = call.function %}"
    "{% endif %}<tool_call>{\"name\": \"{{ call.name }}\", \"arguments\": "
    "{% if call.arguments is string %}{{ call.arguments }}{% else %}"
    "{{ call.arguments | tojson }}{% endif %}}</tool_call>{% endfor %}" + RESULT,
    "llama3_json": CALLS + "{% if message.tool_calls | length != 1 %}"
    "{{ raise_exception('one call') }}{% endif %}{% set call = message.tool_calls[0].function %}"
    "{% if false %}<|python_tag|>{% endif %}"
    "{{ '{\"name\": \"' + call.name + '\", ' }}{{ '\"parameters\": ' }}"
    "{{ call.arguments | tojson }}{{ '}' }}" + RESULT,
    "mistral v3": CALLS + "[TOOL_CALLS] [{% for call in message.tool_calls %}"
    "{% set out = call.function | tojson %}{{ out[:-1] }}" + NINE + "{{ ', \"id\": \"' + call.id "
    "+ '\"}' }}{{ ', ' if not loop.last }}{% endfor %}]" + RESULT,
    "mistral v11": CALLS + "{% for call in message.tool_calls %}" + NINE +
    "{{ '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' + "
    "call.function.arguments | tojson }}{% endfor %}" + RESULT,
    "mistral v13": CALLS + "{% for call in message.tool_calls %}"
    "{% set arguments = call.function.arguments %}{% if arguments is not string %}"
    "{% set arguments = arguments | tojson | safe %}{% endif %}"
    "{{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' + arguments }}{% endfor %}" + RESULT,
    "arguments as text": CALLS + "{% for call in message.tool_calls %}{{ '<tool_call>{\"name\": "
    "\"' + call['function']['name'] + '\", \"arguments\": ' + call['function']['arguments'] + "
    "'}</tool_call>' }}{% endfor %}" + RESULT,
}  # fmt: skip


def message_of(form: AnswerFormat, text: str) -> dict[str, Any]:
    whole = ChatChoice(TOKENIZER, False, form).whole(GenerationResult(text, (), "stop"))
    assert whole["finish_reason"] == "tool_calls"
    return whole["message"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parser", ["auto", "none"])
def test_a_forced_call_is_taken_in_the_next_turn(family: str, parser: str) -> None:
    source = FAMILIES[family]
    tools = tool_format(parser, source)
    form = AnswerFormat(tools=tools, reasoning=None, names={"add", "now"}, forced=True)
    said = f'{{"name": "add", "{tools.arguments}": {{"a": "Zürich", "b": [1, null]}}}}'
    message = message_of(form, said)
    (call,) = message["tool_calls"]
    talk = [
        {"role": "user", "content": "1 + 1?"},
        message,
        {"role": "tool", "tool_call_id": call["id"], "content": "20"},
    ]
    rendered = chat(TOKENIZER, template_messages(talk), only(source))
    written, _, result = rendered.partition("|20")
    assert written and not result
    if parser == "auto":
        (again,) = message_of(replace(form, forced=False), written)["tool_calls"]
        assert again["function"] == call["function"]

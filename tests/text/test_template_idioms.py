"""Idioms of the chat templates that models ship with, rendered beside transformers."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import pytest
from transformers import PreTrainedTokenizerFast

from multilora_text.checkpoint_text import CheckpointText
from multilora_text.continuation import marked, unmarked
from multilora_text.errors import TextError
from multilora_text.messages import template_messages
from multilora_text.tokenizer import Tokenizer
from support.chats import chat
from support.tiny.tokenizers import byte_level

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "</s>"}
CALLS = [
    {"id": "abc123DEF", "type": "function", "function": {
        "name": "add", "arguments": {"a": 1, "words": ["é", "<b>"], "deep": {"x": None}}}},
    {"id": "x", "type": "function", "function": {"name": "now", "arguments": {}}},
]  # fmt: skip
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "1 + 1?\n"},
    {"role": "assistant", "content": "<think>hm</think>\n\nTwo", "reasoning_content": "hm"},
    {"role": "user", "content": "Add 'é' & \"q\" <b>", "name": "bob"},
    {"role": "assistant", "content": "Calling", "tool_calls": CALLS},
    {"role": "tool", "name": "add", "tool_call_id": "abc123DEF", "content": '{"sum": 2}'},
    {"role": "tool", "content": "noon"},
    {"role": "user", "content": ""},
]
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Sums “x”", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer", "enum": [1, 2]}},
        "required": ["a"]}}},
]  # fmt: skip
EACH = "{% for message in messages %}", "{% endfor %}"


def each(body: str) -> str:
    return body.join(EACH)


IDIOMS = {
    "headers": each(
        "{{ '<|im_start|>' + message.role + '\n' + message['content'] + '<|im_end|>\n' }}"
    )
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "trimmed lines": """
    {%- for message in messages %}
        {%- if message['role'] == 'user' -%}
            [INST] {{ message['content'] | trim }} [/INST]
        {%- elif message.role == 'assistant' %}
 {{ message['content'].strip() }}{{ eos_token }}
        {%- endif %}
    {% endfor %}
    """,
    "system first": """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set loop_messages = messages[1:] %}
{%- else %}{% set loop_messages = messages %}{%- endif %}
{{- bos_token }}{{ '<<SYS>>' ~ system_message ~ '<</SYS>>' if system_message is defined }}
{%- for message in loop_messages %}{{ loop.index0 }}{{ loop.length }}{{ message.role }}
{%- endfor %}""",
    "index parity": each(
        "{% if (message.role == 'user') != (loop.index0 % 2 == 1) %}!{% else %}.{% endif %}"
    ),
    "namespace": "{% set ns = namespace(last=-1, seen=false) %}"
    + each(
        "{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% set ns.seen = true %}"
        "{% endif %}"
    )
    + "{{ ns.last }}{{ ns.seen }}",
    "walked backwards": "{% set ns = namespace(at=messages | length - 1, multi=true) %}"
    "{% for message in messages[::-1] %}{% set index = (messages | length - 1) - loop.index0 %}"
    "{% if ns.multi and message.role == 'user' and message.content is string and not"
    "(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}"
    "{% set ns.multi = false %}{% set ns.at = index %}{% endif %}{% endfor %}{{ ns.at }}",
    "thoughts": each("""{%- set content = message.content if message.content is string else '' %}
{%- set reasoning = '' %}
{%- if message.reasoning_content is defined and message.reasoning_content is not none %}
  {%- set reasoning = message.reasoning_content %}
{%- elif '</think>' in content %}
  {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
  {%- set reasoning = reasoning.lstrip('\\n') %}
{%- endif %}
{%- if '</think>' in content %}
  {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '[' + reasoning + '|' + content + ']' }}"""),
    "switch of a keyword": "{% if enable_thinking is defined and enable_thinking is false %}off"
    "{% endif %}"
    "{{ custom | default('none') }}{{ date_string if date_string is defined else 'no date' }}",
    "tools as JSON": "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "{% endif %}",
    "tools indented": "{% if tools is not none %}{{ tools | tojson(indent=4) }}{% endif %}",
    "tools by field": "{% for tool in tools or [] %}{% set tool = tool.function %}{{ tool.name }}:"
    "{% for key, value in tool.parameters.properties.items() %}{{ key }}={{ value.type }}"
    "{{ value.enum | join('|') if value.enum is defined }}"
    "{{ ' *' if key in tool.parameters.required }}"
    "{% endfor %}{{ tool.parameters | tojson(sort_keys=true, separators=(',', ':')) }}{% endfor %}",
    "tools given or not": "{{ tools is defined }} {{ tools is none }} {{ documents is none }} "
    "{{ tools is not none and tools | length > 0 }}",
    "calls": each("""{%- if message.tool_calls is defined and message.tool_calls %}
{%- for call in message.tool_calls %}{% if call.function %}{% set call = call.function %}{% endif %}
<tool_call>{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}</tool_call>
{%- endfor %}{% endif %}"""),
    "calls in JSON": each(
        "{% if 'tool_calls' in message %}{% for call in message['tool_calls'] %}"
        "{{ {'name': call.function.name, 'arguments': call.function.arguments, "
        "'id': call.id[:9]} | tojson }}"
        "{{ ', ' if not loop.last }}{% endfor %}{% endif %}"
    ),
    "results in a row": each(
        "{% if message.role == 'tool' %}{% if loop.previtem.role != 'tool' %}<user>{% endif %}"
        "{{ message.content }}{% if loop.last or loop.nextitem.role != 'tool' %}</user>{% endif %}"
        "{% endif %}"
    ),
    "results by name": each(
        "{{ message.name | default('?') }}{{ message.get('tool_call_id', '-') }}"
        "{{ message.weight }}{{ message['nothing'] }}"
    ),
    "macro": """{% macro shown(value, depth=0) -%}
{%- if value is mapping %}
{%- for k, v in value | dictsort %}{{ k }}({{ shown(v, depth + 1) }}){% endfor %}
{%- elif value is iterable and value is not string %}{% for v in value %}{{ shown(v) }};{% endfor %}
{%- else %}{{ value | string | upper }}{{ depth }}{% endif %}
{%- endmacro %}{{ shown(messages[4].tool_calls) }}""",
    "filters": "{{ messages | selectattr('role', 'equalto', 'user') "
    "| map(attribute='content') | list }}"
    "{{ messages | rejectattr('role', 'in', ['tool', 'user']) | list | length }}"
    "{{ messages | map(attribute='role') | unique | join(',') }}{{ messages[-1].content | length }}"
    "{{ (messages | first).role | capitalize }}{{ 'a,b' | replace(',', '|') | title }}",
    "loop controls": each(
        "{% if message.role == 'tool' %}{% continue %}{% endif %}"
        "{% if loop.index > 6 %}{% break %}{% endif %}{{ message.role[0] }}"
    ),
    "marked answers": each("{% generation %}{{ message.content }}{% endgeneration %}\n"),
    "block set": "{% set block %}\n  {{ messages[1].content }}\n{% endset %}[{{ block }}]",
    "set of several": "{% set a, b = 'x', messages[0].role %}{{ a ~ b }}{{ dict(a=1, **{'b': 2}) }}"
    "{{ [1] + [2] }}{{ 7 // 2 }}{{ 2 ** 3 }}{{ (1, 2) | last }}{{ 'x' * 3 }}{{ not a in b }}",
    "missing tokens": "[{{ bos_token }}{{ unk_token }}{{ mask_token }}]{{ pad_token is defined }}",
    "calls to text methods": each(
        "{{ message.content.replace('\n', '⏎').upper().split(' ') }}{{ '%s' % message.role }}"
    ),
    "documents": "{% for document in documents or [] %}"
    "{{ document.title }}:{{ document['text'] }}{% endfor %}",
    "time": "{{ strftime_now('%Y') | length }}{{ strftime_now is defined }}",
    "guarded refusal": "{% if not messages %}{{ raise_exception('no messages') }}{% endif %}ok",
    "other escapes": "{{ 'é€😀' | tojson }}{{ '<&>\\'' | tojson }}{{ 1.0 }}{{ none }}{{ true }}"
    "{{ [none, true] }}",
    "comments and raw": "{# a note #}{% raw %}{{ raw }}{% endraw %}"
    "{{- '' -}}  \n  {%- if 1 %}  x\n{% endif %}",
}


def ours(source: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    text = CheckpointText(special_tokens=SPECIAL, templates={"default": source})
    return chat(Tokenizer(byte_level(), text), template_messages(messages), **variables)


def continued(source: str, messages: list[dict[str, Any]]) -> str:
    taken = template_messages(messages)
    return unmarked(ours(source, marked(taken), add_generation_prompt=False), taken)


def theirs(source: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    backend: Any = PreTrainedTokenizerFast(tokenizer_object=byte_level(), **SPECIAL)
    options = {"tokenize": False, "add_generation_prompt": True, **variables}
    return backend.apply_chat_template(copy.deepcopy(messages), chat_template=source, **options)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"tools": TOOLS, "documents": [{"title": "T", "text": "é"}]},
        {"enable_thinking": False, "custom": "c", "date_string": "1 May", "bos_token": "<b>"},
    ],
    ids=["chat", "tools", "keywords"],
)
@pytest.mark.parametrize("idiom", IDIOMS)
def test_the_text_is_that_of_transformers(idiom: str, variables: dict[str, Any]) -> None:
    source = IDIOMS[idiom]
    assert ours(source, TALK, **variables) == theirs(source, TALK, **variables)


@pytest.mark.parametrize("idiom", ["headers", "thoughts", "calls", "trimmed lines"])
def test_a_call_without_text_is_rendered_as_by_transformers_without_the_name(idiom: str) -> None:
    """Which leaves a null content out, so that it is tried with the empty text here."""
    null = [*TALK[:4], {**TALK[4], "content": None}]
    empty = [*TALK[:4], {**TALK[4], "content": ""}]
    assert ours(IDIOMS[idiom], null) == theirs(IDIOMS[idiom], empty)


@pytest.mark.parametrize("text", ["Sure", " Sure, \n", "<think>hm</think>\n\nTwo and", ""])
@pytest.mark.parametrize("idiom", IDIOMS)
def test_a_message_is_continued_as_by_transformers(idiom: str, text: str) -> None:
    """A template that does not show it as it is can continue it in neither."""
    source, messages = IDIOMS[idiom], [*TALK[:4], {"role": "assistant", "content": text}]
    try:
        want = theirs(source, messages, add_generation_prompt=False, continue_final_message=True)
    except (ValueError, jinja2.TemplateError):
        with pytest.raises(TextError):
            continued(source, messages)
    else:
        assert continued(source, messages) == want


def test_what_does_not_end_in_a_text_cannot_be_continued() -> None:
    with pytest.raises(TextError, match="no content to continue"):
        continued(IDIOMS["headers"], [*TALK[:4], {**TALK[4], "content": None}])
    with pytest.raises(TextError, match="goes on in tool_calls"):
        continued(IDIOMS["headers"], TALK[:5])

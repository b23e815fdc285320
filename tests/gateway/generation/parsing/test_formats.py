"""The family that a chat template belongs to."""

import pytest

from multilora_gateway.generation.parsing.formats import (
    HERMES,
    LLAMA3,
    MISTRAL,
    reasoning_format,
    tool_format,
)


@pytest.mark.parametrize(
    ("setting", "template", "want"),
    [
        ("auto", "…<tool_call>\\n{{ call }}…", HERMES),
        ("auto", "{{ '<|python_tag|>' }}", LLAMA3),
        ("auto", '{"name": name, "parameters": dictionary of argument name', LLAMA3),
        ("auto", "{{ '[TOOL_CALLS] [' }}", MISTRAL),
        ("auto", "{{ messages }}", HERMES),
        ("hermes", "{{ '<|python_tag|>' }}", HERMES),
        ("llama3_json", "<tool_call>", LLAMA3),
        ("mistral", "<tool_call>", MISTRAL),
    ],
)
def test_the_template_tells_the_format_of_calls(setting: str, template: str, want: object) -> None:
    assert tool_format(setting, template) is want


def test_without_a_parser_calls_have_the_ids_of_their_family() -> None:
    form = tool_format("none", "[TOOL_CALLS]")
    assert form.parser is None
    ids = {form.new_id() for _ in range(20)}
    assert len(ids) == 20 and all(len(each) == 9 and each.isalnum() for each in ids)


@pytest.mark.parametrize(
    ("setting", "template", "tag"),
    [
        ("auto", "{{ messages }}", None),
        ("auto", "{% if '</think>' in content %}", "<think>"),
        ("auto", "{{ '[THINK]' + x + '[/THINK]' }}", "[THINK]"),
        ("none", "</think>", None),
        ("deepseek_r1", "", "<think>"),
        ("qwen3", "", "<think>"),
        ("mistral", "</think>", "[THINK]"),
    ],
)
def test_the_template_tells_the_tags_of_thoughts(
    setting: str, template: str, tag: str | None
) -> None:
    form = reasoning_format(setting, template)
    assert (form and form.tags.open) == tag

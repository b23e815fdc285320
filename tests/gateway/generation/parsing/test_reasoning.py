"""Thoughts and answers, told apart however their text is split."""

import pytest

from multilora_gateway.generation.parsing.parts import ParsedAnswer, Reasoning
from multilora_gateway.generation.parsing.reasoning import (
    ReasoningParser,
    ReasoningTags,
    Thoughts,
)

TAGS = ReasoningTags("<think>", "</think>")


def parsed(text: str, thoughts: Thoughts, size: int) -> tuple[str, str]:
    """The thoughts and the answer of `text`, pushed in pieces of `size` characters."""
    assert thoughts != "none"
    parser = ReasoningParser(TAGS, thoughts)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.finish()
    assert all(part.text if isinstance(part, Reasoning) else part for part in parts)
    answer = ParsedAnswer.joined(parts)
    return answer.reasoning, answer.text


@pytest.mark.parametrize(
    ("text", "thoughts", "reasoning", "answer"),
    [
        ("<think>\nhm \n\n so\n</think>\n\nYes.\n", "possible", "hm \n\n so", "Yes.\n"),
        ("\n<think>hm</think>Yes", "possible", "hm", "Yes"),
        ("<think>hm</think>Yes", "begun", "hm", "Yes"),
        ("hm\n</think>\n\nYes", "begun", "hm", "Yes"),
        ("</think>Yes", "begun", "", "Yes"),
        ("<think>\n\n</think>\n\nYes", "possible", "", "Yes"),
        ("  Yes <think>no</think>", "possible", "", "  Yes <think>no</think>"),
        ("hm</think>Yes</think>", "possible", "", "hm</think>Yes</think>"),
        ("hm</think>Yes <think>x</think>", "begun", "hm", "Yes <think>x</think>"),
        ("<think>hm \n", "possible", "hm", ""),  # cut off
        ("hm </thi", "begun", "hm </thi", ""),
        ("<thi", "begun", "<thi", ""),
        ("<thi", "possible", "", "<thi"),
        ("<thinking>", "possible", "", "<thinking>"),
        (" \n", "begun", "", ""),
        (" \n", "possible", "", " \n"),
        ("", "begun", "", ""),
        (" so\n</think>\n\nYes", "inside", " so", "Yes"),
        ("\n</think>Yes", "inside", "", "Yes"),
        ("<think>", "inside", "<think>", ""),
        ("</thi", "inside", "</thi", ""),
    ],
)
def test_thoughts_are_told_apart(
    text: str, thoughts: Thoughts, reasoning: str, answer: str
) -> None:
    for size in range(1, len(text) + 2):
        assert parsed(text, thoughts, size) == (reasoning, answer), size


def test_thoughts_come_as_they_are_written() -> None:
    parser = ReasoningParser(TAGS, "possible")
    assert parser.push("<think>\n") == []
    assert parser.push("so ") == [Reasoning("so")]
    assert parser.push("it is<") == [Reasoning(" it is")]
    assert parser.push("/think>\n") == []
    assert parser.push("\nYes") == ["Yes"]

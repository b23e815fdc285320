"""Thoughts and answers, told apart however their text is split."""

import pytest

from multilora_gateway.generation.parsing.parts import ParsedAnswer, Reasoning
from multilora_gateway.generation.parsing.reasoning import ReasoningParser, ReasoningTags

TAGS = ReasoningTags("<think>", "</think>")


def parsed(text: str, begun: bool, size: int) -> tuple[str, str]:
    """The thoughts and the answer of `text`, pushed in pieces of `size` characters."""
    parser = ReasoningParser(TAGS, begun)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.finish()
    assert all(part.text if isinstance(part, Reasoning) else part for part in parts)
    answer = ParsedAnswer.joined(parts)
    return answer.reasoning, answer.text


@pytest.mark.parametrize(
    ("text", "begun", "reasoning", "answer"),
    [
        ("<think>\nhm \n\n so\n</think>\n\nYes.\n", False, "hm \n\n so", "Yes.\n"),
        ("\n<think>hm</think>Yes", False, "hm", "Yes"),
        ("<think>hm</think>Yes", True, "hm", "Yes"),
        ("hm\n</think>\n\nYes", True, "hm", "Yes"),
        ("</think>Yes", True, "", "Yes"),
        ("<think>\n\n</think>\n\nYes", False, "", "Yes"),
        ("  Yes <think>no</think>", False, "", "  Yes <think>no</think>"),
        ("hm</think>Yes</think>", False, "", "hm</think>Yes</think>"),
        ("hm</think>Yes <think>x</think>", True, "hm", "Yes <think>x</think>"),
        ("<think>hm \n", False, "hm", ""),  # cut off
        ("hm </thi", True, "hm </thi", ""),
        ("<thi", True, "<thi", ""),
        ("<thi", False, "", "<thi"),
        ("<thinking>", False, "", "<thinking>"),
        (" \n", True, "", ""),
        (" \n", False, "", " \n"),
        ("", True, "", ""),
    ],
)
def test_thoughts_are_told_apart(text: str, begun: bool, reasoning: str, answer: str) -> None:
    for size in range(1, len(text) + 2):
        assert parsed(text, begun, size) == (reasoning, answer), size


def test_thoughts_come_as_they_are_written() -> None:
    parser = ReasoningParser(TAGS, begun=False)
    assert parser.push("<think>\n") == []
    assert parser.push("so ") == [Reasoning("so")]
    assert parser.push("it is<") == [Reasoning(" it is")]
    assert parser.push("/think>\n") == []
    assert parser.push("\nYes") == ["Yes"]

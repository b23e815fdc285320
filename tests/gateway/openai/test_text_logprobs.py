"""Log probabilities of text completions: text[offset] is where a token begins."""

from itertools import chain
from typing import Any

import pytest

from multilora_gateway.backend.messages import Delta, Entries, Token
from multilora_gateway.generation.parallel import GenerationResult
from multilora_gateway.openai.completions import Echo, TextChoice
from multilora_gateway.openai.logprobs import TextOffsets, chat_logprobs, text_logprobs
from multilora_text.detokenizer import Detokenizer
from support.gateway.tgi import tokenizer

TEXT = "a wé 🍕 hello"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def offsets_of(chunks: list[dict[str, Any]]) -> list[int]:
    return list(chain(*(chunk["logprobs"]["text_offset"] for chunk in chunks)))


def test_tokens_and_their_alternatives() -> None:
    text = tokenizer()
    a, b = text.encode("ab")
    tokens = [Token(a, -0.5, ((b, -0.25),)), Token(b, -1.0)]
    assert text_logprobs(tokens, text, TextOffsets(text)) == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"b": -0.25, "a": -0.5}, {"b": -1.0}],
        "text_offset": [0, 1],
    }


def test_tokens_are_named_by_their_ids_where_that_is_wanted() -> None:
    """What else is said of them stays."""
    text = tokenizer()
    a, b = text.encode("ab")
    deltas = [Delta("a", (Token(a, -0.5, ((b, -0.25),)),), "stop")]
    (chunk,) = TextChoice(text, offsets=TextOffsets(text), tokens_as_ids=True).chunks(deltas[0])
    assert chunk["logprobs"] == {
        "tokens": [f"token_id:{a}"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{f"token_id:{b}": -0.25, f"token_id:{a}": -0.5}],
        "text_offset": [0],
    }
    (entry,) = chat_logprobs(deltas[0].tokens, text, as_ids=True)["content"]
    assert (entry["token"], entry["bytes"]) == (f"token_id:{a}", [97])
    assert entry["top_logprobs"][0]["token"] == f"token_id:{b}"


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("stop", [(), ("hello",), ("hexx", "\U0001f355 helly")])
def test_offsets_are_the_same_streamed_and_whole(kind: str, stop: tuple[str, ...]) -> None:
    """Also while the search for stop strings holds text back, and after characters of four
    tokens."""
    text = tokenizer(kind)
    ids = text.encode(TEXT)
    detokenizer = Detokenizer(text, stop)
    deltas = [Delta(detokenizer.push(each), (Token(each, -1.0),)) for each in ids]
    deltas.append(Delta(detokenizer.flush(), (), "stop"))
    choice = TextChoice(text, offsets=TextOffsets(text))
    chunks = [chunk for delta in deltas for chunk in choice.chunks(delta)]
    whole = TextChoice(text, offsets=TextOffsets(text)).whole(GenerationResult.joined(deltas))
    assert offsets_of(chunks) == offsets_of([whole])
    assert whole["text"] == TEXT.removesuffix("hello" if "hello" in stop else "")
    begun = [text.decode(ids[:count]).rstrip(_REPLACEMENT) for count in range(len(ids))]
    assert offsets_of([whole]) == list(map(len, begun))


def test_what_is_not_text_takes_no_place() -> None:
    text = tokenizer("byte_fallback")
    end = text.token_id("</s>")
    assert end is not None
    ids = text.encode("a b")
    offsets = TextOffsets(text)
    told = [offsets.of(each) for each in (end, *ids, end, *ids)]
    assert told == [0, 0, 1, 2, 3, 3, 5, 6]


def test_special_tokens_that_are_shown_are_text() -> None:
    text = tokenizer("byte_fallback")
    end = text.token_id("</s>")
    assert end is not None
    ids = [*text.encode("a b"), end]
    offsets = TextOffsets(text, skip_special_tokens=False)
    told = [offsets.of(each) for each in (*ids, *ids)]
    assert told[len(ids)] == len(text.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize("reasons", [("length",), (None, "length")])
def test_an_echo_comes_with_what_was_said_of_its_tokens(reasons: tuple[str | None, ...]) -> None:
    text = tokenizer()
    ids = text.encode("héy")
    said: list[Entries] = [None]
    for number, each in enumerate(ids[1:]):
        best = {"logprob": -0.25, "rank": 1, "decoded_token": "?"}
        own = {"logprob": -1.0 - number, "rank": 7, "decoded_token": "?"}
        said.append({str(ids[0]): best, "299": {**own, "rank": 2}, str(each): own})
    prompt = TextOffsets(text)
    echo = Echo("héy", 1, ids, [*map(prompt.of, ids)])
    deltas = [Delta("ab", (Token(text.encode("a")[0], -0.5),), reasons[0], prompt=tuple(said))]
    deltas += [Delta("", (), reason) for reason in reasons[1:]]
    choices = [
        TextChoice(text, echo, TextOffsets(text, start=3, before=echo.offsets)) for _ in "ab"
    ]
    assert choices[0].opening() == []
    chunks = [chunk for delta in deltas for chunk in choices[0].chunks(delta)]
    whole = choices[1].whole(GenerationResult.joined(deltas))
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"] == "héyab"
    told = whole["logprobs"]
    assert {key: list(chain(*(chunk["logprobs"][key] for chunk in chunks))) for key in told} == told
    assert told["tokens"] == ["h", "bytes:\\xc3", "bytes:\\xa9", "y", "a"]
    assert told["token_logprobs"] == [None, -1.0, -2.0, -3.0, -0.5]
    assert told["top_logprobs"][0] is None
    assert told["top_logprobs"][3] == {"h": -0.25, "y": -3.0}
    assert told["text_offset"] == [0, 1, 1, 2, 3]

"""Text as it grows equals the text decoded at once, for every kind of tokenizer."""

import random

import pytest

from multilora_text.detokenizer import Detokenizer
from multilora_text.tokenizer import Tokenizer
from support.tiny.tokenizers import KINDS

TEXTS = [
    "hello world",
    "  two  spaces and a trailing one ",
    "naïve café, straße",
    "emoji 😀👩‍👩‍👧‍👦🇩🇪 漢字 …",
    "the hello the",
    "line\nbreak\ttab",
]


@pytest.fixture(params=KINDS, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(KINDS[request.param]())


@pytest.fixture
def bytes_tokenizer() -> Tokenizer:
    return Tokenizer(KINDS["byte_level"]())


def deltas(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, stop)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_deltas_add_up_to_the_whole(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    pieces = deltas(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize("seed", range(4))
def test_random_valid_text_with_special_tokens(tokenizer: Tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    words = ["the", "hello", "w", "é", "漢", "😀", " ", "</s>", "a"]
    ids = tokenizer.encode("".join(rng.choices(words, k=200)))
    assert "".join(deltas(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes(bytes_tokenizer: Tokenizer, seed: int) -> None:
    ids = random.Random(seed).choices(range(256), k=300)
    assert "".join(deltas(bytes_tokenizer, ids)) == bytes_tokenizer.decode(ids)


def test_no_half_characters(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode("x😀y")
    assert len(ids) == 4  # x, three bytes of the emoji in one token, its last byte, y
    assert deltas(bytes_tokenizer, ids) == ["x", "", "😀", "y", ""]


def test_unfinished_character_appears_at_the_end(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode("a😀")[:-1]
    assert deltas(bytes_tokenizer, ids) == ["a", "", "\N{REPLACEMENT CHARACTER}"]


def test_stop_string_is_cut_and_its_beginning_held_back(bytes_tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(bytes_tokenizer, ("END", "ENOUGH"))
    pieces = [detokenizer.push(token_id) for token_id in bytes_tokenizer.encode("a EN.ENENDz")]
    assert "".join(pieces) == "a EN.EN"
    assert detokenizer.stopped
    assert "E" not in pieces[:4]  # held while it may begin a stop string
    assert detokenizer.flush() == ""


def test_held_text_comes_out_at_the_end(bytes_tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(bytes_tokenizer, ("END",))
    assert "".join(map(detokenizer.push, bytes_tokenizer.encode("the EN"))) == "the "
    assert detokenizer.flush() == "EN"
    assert not detokenizer.stopped


def test_the_earliest_stop_string_wins(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello the w")
    text = "".join(deltas(tokenizer, ids, ("w", "the", "o")))
    assert text == "hell"


def test_stop_string_inside_one_token(bytes_tokenizer: Tokenizer) -> None:
    """A token may run past the stop string; nothing of it may leak."""
    assert "".join(deltas(bytes_tokenizer, bytes_tokenizer.encode("a he b"), ("h",))) == "a "

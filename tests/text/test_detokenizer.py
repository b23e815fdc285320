"""Text as it grows equals the text decoded at once, for every kind of tokenizer."""

import itertools
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multilora_text.detokenizer import Detokenizer
from multilora_text.tokenizer import Tokenizer
from support.laws import LAW
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


def deltas(
    tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = (), include_stop: bool = False
) -> list[str]:
    detokenizer = Detokenizer(tokenizer, stop, include_stop)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_deltas_add_up_to_the_whole(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    pieces = deltas(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


WORDS = st.lists(st.sampled_from(["the", "hello", "w", "é", "漢", "😀", " ", "</s>", "a"]))


@LAW
@given(WORDS)
def test_valid_text_with_special_tokens(tokenizer: Tokenizer, words: list[str]) -> None:
    ids = tokenizer.encode("".join(words))
    assert "".join(deltas(tokenizer, ids)) == tokenizer.decode(ids)


@LAW
@given(WORDS)
def test_special_tokens_are_shown_where_they_are_wanted(
    tokenizer: Tokenizer, words: list[str]
) -> None:
    ids = tokenizer.encode("".join(words))
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    text = "".join([*map(detokenizer.push, ids), detokenizer.flush()])
    assert text == tokenizer.decode(ids, skip_special_tokens=False)


@LAW
@given(st.lists(st.integers(0, 255)))
def test_any_bytes(bytes_tokenizer: Tokenizer, ids: list[int]) -> None:
    assert "".join(deltas(bytes_tokenizer, ids)) == bytes_tokenizer.decode(ids)


@settings(LAW, max_examples=300)
@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.integers(1, 5), min_size=1),
)
def test_stop_strings_cut_the_same_however_text_arrives(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    """The one that is complete first cuts, and of two the longer one."""
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    expected = text[: min(ends)[1]] if ends else text
    pieces, rest = [], text
    for size in itertools.cycle(sizes):
        pieces.append(rest[:size])
        rest = rest[size:]
        if not rest:
            break
    letters, ids = cast(Tokenizer, Letters(pieces)), list(range(len(pieces)))
    assert "".join(deltas(letters, ids, tuple(stops))) == expected
    whole = text[: min(ends)[0]] if ends else text
    assert "".join(deltas(letters, ids, tuple(stops), include_stop=True)) == whole


class Letters:
    """A tokenizer whose token `i` is the text `pieces[i]`."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(self._pieces[each] for each in ids)


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

"""Reading a text, and the messages of a chat."""

import pytest

from multilora.errors import ErrorCode, RequestError
from multilora.wire.prompt import LONGEST_TEXT, chat_error, encode_text, parse_messages
from multilora_text.errors import RenderingBusy, TextError
from multilora_text.tokenizer import Tokenizer
from support.tiny.tokenizers import byte_level


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hello", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"role": "user"}', "not a list"),
        ("[]", "not a list"),
        ('["hi"]', "messages.0 must be an object with a role"),
        ('[{"content": "hi"}]', "messages.0 must be an object with a role"),
        ('[{"role": "user", "content": 3}]', "messages.0.content must be a string"),
    ],
)
def test_bad_messages(text: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        parse_messages(text)


def test_a_refusal_is_the_requests_own() -> None:
    refused = chat_error(TextError("no chat template; render it"))
    busy = chat_error(RenderingBusy("others wait; try again later"))
    assert (refused.code, refused.message) == (ErrorCode.INVALID_ARG, "no chat template; render it")
    assert busy.code is ErrorCode.UNAVAILABLE


def test_a_text() -> None:
    tokenizer = Tokenizer(byte_level())
    assert tokenizer.decode(encode_text(tokenizer, "hé")) == "hé"
    for text, reason in (("", "text_input is empty"), ("a" * (LONGEST_TEXT + 1), "shorten it")):
        with pytest.raises(RequestError, match=reason) as caught:
            encode_text(tokenizer, text)
        assert caught.value.code is ErrorCode.INVALID_ARG
    with pytest.raises(RequestError, match="characters, but at most"):
        parse_messages("[" + " " * LONGEST_TEXT + "]")

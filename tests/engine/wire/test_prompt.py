"""Reading the messages of a chat."""

import pytest

from multilora.errors import ErrorCode, RequestError
from multilora.wire.prompt import encode_chat, parse_messages
from multilora_text.tokenizer import Tokenizer
from support.tiny.tokenizers import byte_level


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hello", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"role": "user"}', "not a list"),
        ("[]", "not a list"),
        ('["hi"]', "role and content"),
        ('[{"content": "hi"}]', "role and content"),
        ('[{"role": "user", "content": 3}]', "must be a string"),
    ],
)
def test_bad_messages(text: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        parse_messages(text)


def test_a_refusal_is_the_requests_own() -> None:
    with pytest.raises(RequestError, match="no chat template; render") as caught:
        encode_chat(Tokenizer(byte_level()), [{"role": "user", "content": "hi"}])
    assert caught.value.code is ErrorCode.INVALID_ARG

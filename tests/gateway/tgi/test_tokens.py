"""Token texts add up to the generated text, for every kind of tokenizer."""

import pytest

from multilora_gateway.backend.messages import Token
from multilora_gateway.tgi.tokens import TokenTexts
from support.gateway.tgi import tokenizer
from support.tiny import tokenizers as tiny_tokenizers

TEXTS = ["hello world", " two  spaces", "Grüße 東京 🍕", "a"]


def shown(kind: str, prompt: str, ids: list[int]) -> tuple[TokenTexts, list[dict[str, object]]]:
    text = tokenizer(kind)
    texts = TokenTexts(text, text.encode(prompt) if prompt else [])
    tokens = [Token(token_id, -0.5) for token_id in ids]
    return texts, [texts.push(token, last=token is tokens[-1]) for token in tokens]


@pytest.mark.parametrize("kind", sorted(tiny_tokenizers.KINDS))
@pytest.mark.parametrize("text", TEXTS)
def test_texts_add_up(kind: str, text: str) -> None:
    ids = tokenizer(kind).encode(text)
    texts, tokens = shown(kind, "hello", ids)
    assert "".join(str(token["text"]) for token in tokens) == texts.text
    expected = tokenizer(kind).decode(ids)
    assert texts.text.lstrip() == expected.lstrip()
    assert texts.count == len(ids)


def test_text_continues_the_prompt() -> None:
    """Llama 2's decoder drops the first space of a text; here it stands within one."""
    ids = tokenizer("byte_fallback").encode("world")
    assert shown("byte_fallback", "hello", ids)[0].text == " world"
    assert shown("byte_fallback", "", ids)[0].text == "world"


def test_special_tokens_are_flagged_and_not_text() -> None:
    text = tokenizer()
    end = text.token_id("</s>")
    assert end is not None
    texts, tokens = shown("byte_level", "hello", [*text.encode("hi"), end])
    assert texts.text == "hi"
    assert tokens[-1] == {"id": end, "text": "</s>", "logprob": -0.5, "special": True}
    assert not tokens[0]["special"]


def test_half_a_character_waits_and_shows_at_the_end() -> None:
    ids = tokenizer().encode("🍕")
    assert len(ids) > 2
    texts, tokens = shown("byte_level", "hello", ids)
    assert [token["text"] for token in tokens] == [*[""] * (len(ids) - 1), "🍕"]
    texts, tokens = shown("byte_level", "hello", ids[:-1])
    assert tokens[-1]["text"] == texts.text == "\N{REPLACEMENT CHARACTER}"


def test_likely_tokens() -> None:
    text = tokenizer()
    first, second = text.encode("a"), text.encode("b")
    token = Token(first[0], -0.1, ((first[0], -0.1), (second[0], -2.0), (5, -3.0)))
    texts = TokenTexts(text, text.encode("hello"))
    chosen = texts.push(token, last=False)
    assert texts.top(token, chosen, 2) == [
        {"id": first[0], "text": "a", "logprob": -0.1, "special": False},
        {"id": second[0], "text": "b", "logprob": -2.0, "special": False},
    ]


def test_json_has_no_infinity() -> None:
    text = tokenizer()
    texts = TokenTexts(text, [])
    assert texts.push(Token(3, float("-inf")), last=True)["logprob"] == -9999.0

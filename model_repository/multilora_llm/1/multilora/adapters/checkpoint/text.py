"""What an adapter folder says about text: its own chat template, and tokens it wants to add.

PEFT folders often carry copies of the base model's tokenizer files: those change nothing. Tokens
that the base model lacks need rows in its embedding, which are not computed: they are refused.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from multilora.adapters.files import too_large
from multilora.errors import invalid
from multilora.json_fields import json_object
from multilora_text.chat_template import (
    SPECIAL_TOKENS,
    TEMPLATE_FILE,
    TOKENIZER_CONFIG,
    ChatTemplate,
    content,
    find_template,
    special_tokens,
)
from multilora_text.tokenizer import Tokenizer

ADDED_FILE = "added_tokens.json"
SPECIAL_FILE = "special_tokens_map.json"

_MAX_TEMPLATE_BYTES = 1 << 20
_MAX_JSON_BYTES = 8 << 20  # some base models list six thousand tokens there: 1.2 MB
TEXT_LIMITS = {  # bytes
    TEMPLATE_FILE: _MAX_TEMPLATE_BYTES,
    TOKENIZER_CONFIG: _MAX_JSON_BYTES,
    ADDED_FILE: _MAX_JSON_BYTES,
    SPECIAL_FILE: _MAX_JSON_BYTES,
}
_REMEDY = "added vocabulary is not supported: train with the base model's tokenizer as it is"
_SHOWN_TOKENS = 5
_SHOWN_CHARACTERS = 40


def adapter_template(files: Mapping[str, bytes], tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template that an adapter brings in its `files`, None when it brings none.

    `tokenizer` is the base model's. Raises RequestError (INVALID_ARG): a file is broken, the
    template is too large, or the adapter adds tokens. Nothing here compiles the template.
    """
    config = _object(files, TOKENIZER_CONFIG)
    special = _object(files, SPECIAL_FILE)
    _check_tokens(_object(files, ADDED_FILE), config, special, tokenizer)
    if len(json.dumps(config.get("chat_template"))) > _MAX_TEMPLATE_BYTES:
        raise too_large(f"chat_template of {TOKENIZER_CONFIG}", _MAX_TEMPLATE_BYTES)
    tokens = {**tokenizer.special_tokens, **special_tokens(special), **special_tokens(config)}
    try:
        return find_template(_text(files, TEMPLATE_FILE), config, tokens)
    except ValueError as error:
        raise invalid(f"its chat template is broken ({error}); fix or remove it") from None


def _text(files: Mapping[str, bytes], name: str) -> str | None:
    if name not in files:
        return None
    try:
        return files[name].decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"{name} is not UTF-8 ({error}); save it again") from None


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The JSON object of a file, empty when there is no such file."""
    return json_object(files.get(name, b"{}"), name, "save it again")


def _check_tokens(
    added: Mapping[str, Any],
    config: Mapping[str, Any],
    special: Mapping[str, Any],
    tokenizer: Tokenizer,
) -> None:
    numbered = _decoder(config)
    numbered += [(token, _number(ADDED_FILE, number)) for token, number in added.items()]
    named = {*_named(config), *_named(special)} - set(tokenizer.special_tokens.values())
    mentioned = dict.fromkeys([*(token for token, _ in numbered), *sorted(named)])
    extra = [token for token in mentioned if tokenizer.token_id(token) is None]
    if extra:
        raise invalid(f"adds the tokens {_shown(extra)}, which the base model lacks; {_REMEDY}")
    moved = [token for token, number in numbered if tokenizer.token_id(token) != number]
    if moved:
        raise invalid(
            f"gives the tokens {_shown(moved)} other ids than the base model does; {_REMEDY}"
        )


def _decoder(config: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(token, id) of `added_tokens_decoder`: {"7": {"content": "<x>", …}}."""
    decoder = config.get("added_tokens_decoder") or {}
    where = f"added_tokens_decoder of {TOKENIZER_CONFIG}"
    if not isinstance(decoder, dict) or not all(content(entry) for entry in decoder.values()):
        raise invalid(f'{where} must be an object of id: {{"content": token}}; save it again')
    return [(content(entry), _number(where, key)) for key, entry in decoder.items()]


def _number(where: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        return int(value)
    given = str(value)[:_SHOWN_CHARACTERS]
    raise invalid(f"{where}: token ids are whole numbers; got {given!r}; save it again")


def _named(fields: Mapping[str, Any]) -> Iterator[str]:
    """The special tokens that stand in a file by name, without an id."""
    values = [fields.get(name) for name in (*SPECIAL_TOKENS, "mask_token")]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = fields.get(name)
        if isinstance(more, dict):
            more = list(more.values())
        values += more if isinstance(more, list) else []
    return (token for token in map(content, values) if token)


def _shown(tokens: list[str]) -> str:
    shown = ", ".join(repr(token[:_SHOWN_CHARACTERS]) for token in tokens[:_SHOWN_TOKENS])
    more = len(tokens) - _SHOWN_TOKENS
    return f"{shown} and {more} more" if more > 0 else shown

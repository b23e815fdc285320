"""What the files of a checkpoint folder, of a base model or an adapter, say about text, in one.

Laws: no other place reads these files, and nothing here compiles or runs a template. Where files
contradict each other, the one counts that transformers takes:

- Special tokens are those of special_tokens_map.json, then of tokenizer_config.json. Where the
  latter has `added_tokens_decoder`, it counts alone, and added_tokens.json does not count either.
- Chat templates are chat_template.jinja and the files of additional_chat_templates. A folder that
  has none of these has those of tokenizer_config.json, else the one of chat_template.json.
- End tokens are those of config.json, of generation_config.json and the special token `eos_token`
  together.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from multilora_text.errors import TextError

MODEL_CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
TEMPLATE_JSON = "chat_template.json"
TEMPLATE_FILES = {  # of the names that a template is chosen by
    "default": "chat_template.jinja",
    "tool_use": "additional_chat_templates/tool_use.jinja",
}
TEXT_FILES = (
    MODEL_CONFIG,
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS_MAP,
    ADDED_TOKENS,
    TEMPLATE_JSON,
    *TEMPLATE_FILES.values(),
)
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_SHOWN = 40  # characters of a value in a message


@dataclass(frozen=True)
class CheckpointText:
    """Filled by `merge_text`; the defaults are what a folder without any file says.

    `special_tokens` are texts by name: bos_token, …; `templates` sources by name. `end_token_ids`
    are the end tokens that files give as numbers, `sampling` the sampling parameters for requests
    that name none. `numbered_tokens` are (token, id) pairs that files add to the vocabulary,
    `named_tokens` all that files name as special.
    """

    special_tokens: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    end_token_ids: tuple[int, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)
    numbered_tokens: tuple[tuple[str, int], ...] = ()
    named_tokens: frozenset[str] = frozenset()


def merge_text(files: Mapping[str, str], where: str = "") -> CheckpointText:
    """`files` are the texts of those TEXT_FILES that a folder has. TextError names the file, what
    to do, and `where` the files lie."""
    try:
        return _merged(files)
    except TextError as error:
        raise TextError(f"{where}: {error}" if where else str(error)) from None


def _merged(files: Mapping[str, str]) -> CheckpointText:
    config = _object(files, TOKENIZER_CONFIG)
    named, numbered = dict(config), _decoder(config)
    if "added_tokens_decoder" not in config:
        named |= _object(files, SPECIAL_TOKENS_MAP)
        numbered = _added(_object(files, ADDED_TOKENS))
    special = _special_tokens(named)
    generation = _object(files, GENERATION_CONFIG)
    ids = (
        *_end_ids(_object(files, MODEL_CONFIG), MODEL_CONFIG),
        *_end_ids(generation, GENERATION_CONFIG),
    )
    return CheckpointText(
        special_tokens=special,
        templates=_templates(files, config),
        end_token_ids=tuple(dict.fromkeys(ids)),
        sampling=dict(_sampling(generation)),
        numbered_tokens=tuple(numbered),
        named_tokens=frozenset((*special.values(), *_unnamed(named))),
    )


def _object(files: Mapping[str, str], name: str) -> dict[str, Any]:
    """The JSON object of a file, empty when there is no such file."""
    try:
        value = json.loads(files.get(name, "{}").removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise TextError(f"{name} is not JSON ({error}); save or download it again") from None
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise TextError(f"{name} must be a JSON object; got {kind}; save or download it again")
    return value


def _content(token: object) -> str:
    """The text of a special token: a file has it as a string or as {"content": string, …}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _special_tokens(named: Mapping[str, Any]) -> dict[str, str]:
    more = named.get("extra_special_tokens")
    named = {**named, **more} if isinstance(more, dict) else named
    found = {name: _content(value) for name, value in named.items() if name.endswith("_token")}
    return {name: token for name, token in found.items() if token}


def _unnamed(named: Mapping[str, Any]) -> Iterator[str]:
    """The special tokens that have no name of their own."""
    for name in ("additional_special_tokens", "extra_special_tokens"):
        tokens = named.get(name)
        yield from filter(None, map(_content, tokens if isinstance(tokens, list) else ()))


def _decoder(config: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(token, id) of `added_tokens_decoder`: {"7": {"content": "<x>", …}}."""
    decoder = config.get("added_tokens_decoder") or {}
    where = f"added_tokens_decoder of {TOKENIZER_CONFIG}"
    if not isinstance(decoder, dict) or not all(map(_content, decoder.values())):
        raise TextError(f'{where} must be an object of id: {{"content": token}}; save it again')
    return [(_content(token), _number(key, where)) for key, token in decoder.items()]


def _added(added: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(token, _number(value, ADDED_TOKENS)) for token, value in added.items()]


def _number(value: object, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        return int(value)
    given = str(value)[:_SHOWN]
    raise TextError(f"{where}: token ids are whole numbers; got {given!r}; save it again")


def _templates(files: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, str]:
    if found := {name: files[file] for name, file in TEMPLATE_FILES.items() if file in files}:
        return found
    inline = config.get("chat_template")
    if inline is None:
        inline = _object(files, TEMPLATE_JSON).get("chat_template")
    named: dict[str, Any] = inline if isinstance(inline, dict) else {"default": inline}
    if isinstance(inline, list) and all(isinstance(entry, dict) for entry in inline):
        named = {str(entry.get("name")): entry.get("template") for entry in inline}
    found = {name: source for name in TEMPLATE_FILES if (source := named.get(name))}
    for source in found.values():
        if not isinstance(source, str):
            kind = type(source).__name__
            raise TextError(f"chat_template must be a string; got {kind}; fix or remove it")
    return found


def _end_ids(config: Mapping[str, Any], file: str) -> list[int]:
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in ids):
        given = str(value)[:_SHOWN]
        raise TextError(
            f"{file}: eos_token_id must be a token id or a list of them; got {given!r}; correct it"
        )
    return [number for number in ids if number >= 0]  # older files say -1 for none


def _sampling(generation: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name in _SAMPLING:
        value = generation.get(name)
        if value is None:
            continue
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        fits = whole if name == "top_k" else isinstance(value, int | float)
        if isinstance(value, bool) or not fits:
            kind, given = "whole number" if name == "top_k" else "number", str(value)[:_SHOWN]
            raise TextError(
                f"{GENERATION_CONFIG}: {name} must be a {kind}; got {given!r}; correct it"
            )
        yield name, value

"""A chat template: the jinja program of a checkpoint that turns messages into prompt text.

The program stands in `chat_template.jinja`, or else in `tokenizer_config.json` as `chat_template`.
It is untrusted code, so nothing here compiles or runs it: that is the TemplateRenderer's work.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


@dataclass(frozen=True)
class ChatTemplate:
    """`special_tokens` are names that the program may use: bos_token, …"""

    source: str
    special_tokens: Mapping[str, str]


def find_template(
    file: str | None, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """The template of a folder: `file` is the text of TEMPLATE_FILE, `config` TOKENIZER_CONFIG.

    None when the folder has none. Raises ValueError when it is no string.
    """
    source: Any = file if file is not None else config.get("chat_template")
    if isinstance(source, list):  # several named templates
        source = _default(source)
    if not source:
        return None
    if not isinstance(source, str):
        raise ValueError(f"chat_template must be a string; got {type(source).__name__}")
    return ChatTemplate(source, special_tokens)


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that the template may use, by name; TOKENIZER_CONFIG names them."""
    found = {name: content(config.get(name)) for name in SPECIAL_TOKENS}
    return {name: token for name, token in found.items() if token}


def content(token: object) -> str:
    """The text of a special token: a config has it as a string or as {"content": string, …}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _default(named: list[Any]) -> Any:
    for entry in named:
        if isinstance(entry, dict) and entry.get("name") == "default":
            return entry.get("template")
    return None

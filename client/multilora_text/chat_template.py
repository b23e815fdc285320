"""A chat template: the jinja program of a checkpoint that turns messages into prompt text.

The program stands in `chat_template.jinja`, or else in `tokenizer_config.json` as `chat_template`.
It is untrusted code, so it runs in a sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from multilora_text.errors import TextError

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")

_KEPT = 256  # compiled templates; thousands of adapters share a handful of them


@dataclass(frozen=True)
class ChatTemplate:
    """A program that compiles. `special_tokens` are names that it may use: bos_token, …"""

    source: str
    special_tokens: Mapping[str, str]

    @staticmethod
    def compiled(source: str, special_tokens: Mapping[str, str]) -> "ChatTemplate":
        """Raises ValueError, which says what is wrong with the program."""
        try:
            _compile(source)
        except Exception as error:  # the compiler computes constants: it may raise anything
            raise ValueError(str(error) or type(error).__name__) from None
        return ChatTemplate(source, special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt text of a conversation that the assistant continues.

        `variables` are more names that the program may know, such as tools. Raises TextError when
        the program refuses the messages.
        """
        names = {**self.special_tokens, "add_generation_prompt": True, **variables}
        try:
            return _compile(self.source).render(messages=messages, **names)
        except Exception as error:  # a template is a program: it may raise anything
            raise TextError(
                f"the chat template refuses these messages ({error}); change them, or send the "
                "prompt as text_input without chat"
            ) from None


def find_template(
    file: str | None, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """The template of a folder: `file` is the text of TEMPLATE_FILE, `config` TOKENIZER_CONFIG.

    None when the folder has none. Raises ValueError, which says what is wrong with the template.
    """
    source: Any = file if file is not None else config.get("chat_template")
    if isinstance(source, list):  # several named templates
        source = _default(source)
    if not source:
        return None
    if not isinstance(source, str):
        raise ValueError(f"chat_template must be a string; got {type(source).__name__}")
    return ChatTemplate.compiled(source, special_tokens)


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that the template may use, by name; TOKENIZER_CONFIG names them."""
    found = {name: content(config.get(name)) for name in SPECIAL_TOKENS}
    return {name: token for name, token in found.items() if token}


def content(token: object) -> str:
    """The text of a special token: a config has it as a string or as {"content": string, …}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


class _GenerationTag(Extension):
    """Ignores the tags `{% generation %}…{% endgeneration %}`, which mark training targets."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _default(named: list[Any]) -> Any:
    for entry in named:
        if isinstance(entry, dict) and entry.get("name") == "default":
            return entry.get("template")
    return None


@lru_cache(maxsize=_KEPT)
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: object, **options: Any) -> str:
    """JSON in which HTML characters stay as they are: jinja2's own tojson escapes them."""
    return json.dumps(value, **{"ensure_ascii": False, **options})

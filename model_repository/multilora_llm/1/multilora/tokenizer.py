"""Text ↔ token ids of the base model, and its chat template.

Read from an HF checkpoint folder: `tokenizer.json`, and for chats `chat_template.jinja` or the
`chat_template` of `tokenizer_config.json`. Nothing here needs torch or transformers.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import tokenizers
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from multilora.errors import StartupError, invalid

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class Tokenizer:
    """Immutable after construction, so any thread may use it."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        chat_template: jinja2.Template | None = None,
        special_tokens: dict[str, str] | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._chat_template = chat_template
        self._special_tokens = special_tokens or {}

    @staticmethod
    def from_folder(folder: Path) -> "Tokenizer":
        """Raises StartupError when the folder holds no readable tokenizer.json."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise StartupError(
                f"{path} does not exist; the base model needs a fast tokenizer: save one with "
                "transformers' AutoTokenizer.save_pretrained"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise StartupError(f"{path} cannot be read ({error}); download it again") from None
        config = _read_json(folder / "tokenizer_config.json")
        special = {name: _content(config.get(name)) for name in _SPECIAL_TOKENS}
        return Tokenizer(
            backend,
            _load_chat_template(folder, config),
            {name: token for name, token in special.items() if token},
        )

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, with the tokens that the tokenizer itself puts around it."""
        return self._backend.encode(text).ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def chat(self, messages: Sequence[dict[str, Any]]) -> str:
        """The prompt text of a conversation that the assistant continues.

        Raises RequestError (INVALID_ARG) when there is no template or it refuses the messages.
        """
        if self._chat_template is None:
            raise invalid(
                "the base model has no chat template; render the messages yourself and send them "
                "as text_input without chat"
            )
        try:
            return self._chat_template.render(
                messages=messages, add_generation_prompt=True, **self._special_tokens
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise invalid(f"the chat template refuses these messages: {error}") from None

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The ids of `chat(messages)`; the template writes its own special tokens."""
        return self._backend.encode(self.chat(messages), add_special_tokens=False).ids


def parse_messages(text: str) -> list[dict[str, Any]]:
    """Read a JSON list of {role, content} messages; raises RequestError (INVALID_ARG)."""
    remedy = 'send for example [{"role": "user", "content": "Hello"}]'
    try:
        messages = json.loads(text)
    except ValueError as error:
        raise invalid(f"chat is set but text_input is not JSON ({error}); {remedy}") from None
    if not isinstance(messages, list) or not messages:
        raise invalid(f"chat is set but text_input is not a list of messages; {remedy}")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise invalid(f"chat: every message is an object with role and content; {remedy}")
        if not isinstance(message.get("content"), str):
            raise invalid(f"chat: the content of every message must be a string; {remedy}")
    return messages


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks training targets; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _load_chat_template(folder: Path, config: dict[str, Any]) -> jinja2.Template | None:
    path = folder / "chat_template.jinja"
    source = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(source, list):  # several named templates
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    if not source:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise StartupError(
            f"the chat template in {folder} is broken ({error}); fix or remove it"
        ) from None


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: object, **options: Any) -> str:
    """jinja2's own tojson escapes HTML characters, which a prompt must not."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _content(token: object) -> str:
    """A special token stands in the config as a string or as {"content": string, …}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StartupError(f"{path} is not JSON ({error}); download it again") from None

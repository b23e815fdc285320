"""What an adapter folder says about text: chat templates, end tokens, tokens it wants to add.

PEFT folders often carry copies of the base model's tokenizer files: those change nothing. Texts are
tokenised as the base model does it, whatever the folder says.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from multilora.adapters.files import OPTIONAL_FILES, FileBytes, too_large
from multilora.errors import invalid
from multilora_text.chat_template import NO_TEMPLATES, ChatTemplates
from multilora_text.checkpoint_text import TEMPLATE_FILES, CheckpointText, merge_text
from multilora_text.errors import TextError
from multilora_text.tokenizer import Tokenizer

_MAX_TEMPLATE_BYTES = 1 << 20
_MAX_JSON_BYTES = 8 << 20  # some base models list six thousand tokens there: 1.2 MB
TEXT_LIMITS = {  # bytes
    name: _MAX_TEMPLATE_BYTES if name in TEMPLATE_FILES.values() else _MAX_JSON_BYTES
    for name in OPTIONAL_FILES
}
_SHOWN_TOKENS = 5
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class AdapterText:
    """What counts for the requests of an adapter. Without a template of its own for a chat the base
    model's renders it; `end_token_ids` end its answers beside the base model's end tokens.
    `warning` says what does not count, "" nothing."""

    templates: ChatTemplates = NO_TEMPLATES
    end_token_ids: frozenset[int] = frozenset()
    warning: str = ""


NO_TEXT = AdapterText()


def adapter_text(files: Mapping[str, FileBytes], tokenizer: Tokenizer) -> AdapterText:
    """`files` are those of an adapter, by name; `tokenizer` is the base model's.

    Raises RequestError (INVALID_ARG): a file is broken, a template is too large, or tokens of the
    base model have other ids. Nothing here compiles a template.
    """
    texts = {name: _text(bytes(files[name].data), name) for name in OPTIONAL_FILES if name in files}
    try:
        text = merge_text(texts)
    except TextError as error:
        raise invalid(str(error)) from None
    if any(len(source) > _MAX_TEMPLATE_BYTES for source in text.templates.values()):
        raise too_large("its chat template", _MAX_TEMPLATE_BYTES)
    special_tokens = {**tokenizer.text.special_tokens, **text.special_tokens}
    end_token_ids = frozenset(tokenizer.end_token_ids(text))
    warning = _check_tokens(text, tokenizer)
    return AdapterText(ChatTemplates.of(text, special_tokens), end_token_ids, warning)


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"{name} is not UTF-8 ({error}); save it again") from None


def _check_tokens(text: CheckpointText, tokenizer: Tokenizer) -> str:
    """What to warn of. Tokens that an adapter adds need rows in the embedding, with which it would
    be refused; without them no prompt and no answer holds such a token (mostly it is for padding
    in training)."""
    known = ((token, number, tokenizer.token_id(token)) for token, number in text.numbered_tokens)
    moved = [token for token, number, own in known if own not in (None, number)]
    if moved:
        raise invalid(
            f"gives the tokens {_shown(moved)} other ids than the base model does; train with the "
            "base model's tokenizer as it is"
        )
    named = text.named_tokens - tokenizer.text.named_tokens
    mentioned = dict.fromkeys([*(token for token, _ in text.numbered_tokens), *sorted(named)])
    extra = [token for token in mentioned if tokenizer.token_id(token) is None]
    if not extra:
        return ""
    return (
        f"its tokenizer adds the tokens {_shown(extra)}, for which it brings no embedding; texts "
        "are tokenised as the base model does it, without them"
    )


def _shown(tokens: list[str]) -> str:
    shown = ", ".join(repr(token[:_SHOWN_CHARACTERS]) for token in tokens[:_SHOWN_TOKENS])
    more = len(tokens) - _SHOWN_TOKENS
    return f"{shown} and {more} more" if more > 0 else shown

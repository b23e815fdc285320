"""Small tokenizers of the kinds that base models use, made without downloads."""

from collections.abc import Callable

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

SPECIAL = ("<s>", "</s>")


def byte_level() -> tokenizers.Tokenizer:
    """GPT-2's kind: every byte is a token, a few pairs are merged (one across a character)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("Ġ", "w"), ("ð", "Ł"), ("ðŁ", "ĺ")]
    vocabulary = [*alphabet, *(left + right for left, right in merges)]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    return backend


def byte_fallback() -> tokenizers.Tokenizer:
    """Llama 2's kind: ▁ for spaces, unknown characters as byte tokens, first space dropped."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters, "▁w", "▁a"]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(vocabulary)},
            merges=[("▁", "w"), ("▁", "a")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(list(SPECIAL))
    return backend


def metaspace() -> tokenizers.Tokenizer:
    """T5's and SentencePiece Unigram's kind: words begin with ▁."""
    letters = [chr(code) for code in range(33, 127)] + list("éß…漢字")
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("▁the", -3.0), ("▁hello", -3.0)]
    backend = tokenizers.Tokenizer(
        models.Unigram([*pieces, *((letter, -5.0) for letter in letters)], unk_id=0)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
    backend.add_special_tokens(list(SPECIAL))
    return backend


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "metaspace": metaspace,
}

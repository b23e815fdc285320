"""The keyword arguments of a generation. scripts/generate.py writes this file."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class Sampling(TypedDict, total=False):
    """How to pick tokens. Without a value the server's default counts: 16 tokens, greedy.

    `grammar` is {"type": "json", "value": SCHEMA} and the like, or the JSON text of one.
    `adapter_timeout` is how many seconds to wait for an adapter that the server has to load first,
    `adapter_token` opens a private Hub repository to load the adapter from.
    """

    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    stop_words: Sequence[str]
    grammar: Mapping[str, Any] | str
    ignore_eos: bool
    adapter_timeout: float
    adapter_token: str

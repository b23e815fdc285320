"""Requests and tokens of single adapters, for a bounded number of adapters.

Law: a figure never falls and nothing is counted twice or lost. An adapter that has no room any
more is added to `_other`; when it comes back it starts at 0.
"""

import hashlib
import unicodedata
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

BASE_LABEL = "_base"
OTHER_LABEL = "_other"

_MAX_LABEL = 256  # characters
_DIGEST = 16
_UNPRINTABLE = frozenset(("Cc", "Cs", "Zl", "Zp"))  # control, half of a pair, line separators


class CountFigures(NamedTuple):
    """Label → sum; never changes."""

    requests: Mapping[str, int]
    tokens: Mapping[str, int]


@dataclass
class _Count:
    requests: int = 0
    tokens: int = 0

    def add(self, other: "_Count") -> None:
        self.requests += other.requests
        self.tokens += other.tokens


class AdapterCounts:
    """Keeps the `limit` adapters used most recently. One thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._base = _Count()
        self._other = _Count()
        self._recent: OrderedDict[str, _Count] = OrderedDict()

    def request(self, adapter_id: str) -> None:
        """One request more; "" is the base model."""
        self._use(adapter_id).requests += 1

    def tokens(self, adapter_id: str, count: int) -> None:
        """`count` generated tokens more."""
        self._use(adapter_id).tokens += count

    def figures(self) -> CountFigures:
        """For any thread: a copy, of at most limit + 2 labels."""
        counts = {BASE_LABEL: self._base, OTHER_LABEL: self._other, **self._recent}
        used = {label: count for label, count in counts.items() if count.requests or count.tokens}
        return CountFigures(
            MappingProxyType({label: count.requests for label, count in used.items()}),
            MappingProxyType({label: count.tokens for label, count in used.items()}),
        )

    def _use(self, adapter_id: str) -> _Count:
        if not adapter_id:
            return self._base
        if not self._limit:
            return self._other
        label = adapter_label(adapter_id)
        count = self._recent.get(label)
        if count is not None:
            self._recent.move_to_end(label)
            return count
        if len(self._recent) == self._limit:
            _, oldest = self._recent.popitem(last=False)
            self._other.add(oldest)
        return self._recent.setdefault(label, _Count())


@lru_cache(maxsize=4096)
def adapter_label(adapter_id: str) -> str:
    """The value of a metric label: an id as it is, unless a label cannot hold it.

    Different ids have different labels. Quotes and the like are the exporter's to escape.
    """
    clean = "".join("?" if unicodedata.category(c) in _UNPRINTABLE else c for c in adapter_id)
    if clean == adapter_id and len(clean) <= _MAX_LABEL and clean not in (BASE_LABEL, OTHER_LABEL):
        return adapter_id
    digest = hashlib.sha256(adapter_id.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{clean[: _MAX_LABEL - _DIGEST - 1]}~{digest}"

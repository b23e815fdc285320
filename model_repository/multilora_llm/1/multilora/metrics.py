"""The engine's figures, as they appear on the Triton server's /metrics."""

import hashlib
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from multilora_api.adapter_names import UNPRINTABLE

_DESCRIBE_SECONDS = 0.25  # how old the figures of single adapters may be while the engine runs
BASE_LABEL = "_base"
OTHER_LABEL = "_other"

_MAX_LABEL = 256  # characters
_DIGEST = 16


class MetricSpec(NamedTuple):
    counter: bool  # a counter only grows; otherwise a gauge
    help: str


METRICS: dict[str, MetricSpec] = {
    "multilora_requests_total": MetricSpec(True, "Requests accepted"),
    "multilora_prompt_tokens_total": MetricSpec(True, "Prompt tokens of accepted requests"),
    "multilora_cached_prompt_tokens_total": MetricSpec(True, "Tokens found in the prefix cache"),
    "multilora_generated_tokens_total": MetricSpec(True, "Tokens generated"),
    "multilora_steps_total": MetricSpec(True, "Forward passes"),
    "multilora_preemptions_total": MetricSpec(True, "Sequences preempted for KV blocks"),
    "multilora_adapter_loads_total": MetricSpec(True, "Adapters copied into the device pool"),
    "multilora_adapter_evictions_total": MetricSpec(True, "Adapters evicted from the device pool"),
    "multilora_running_requests": MetricSpec(False, "Requests in the running batch"),
    "multilora_waiting_requests": MetricSpec(False, "Requests waiting for room or an adapter"),
    "multilora_kv_blocks_used": MetricSpec(False, "KV blocks held by running requests"),
    "multilora_kv_blocks": MetricSpec(False, "KV blocks in total"),
    "multilora_adapter_pages_used": MetricSpec(False, "Rank pages holding an adapter"),
    "multilora_adapter_pages": MetricSpec(False, "Rank pages in total"),
    "multilora_adapter_references": MetricSpec(False, "References of running requests to adapters"),
    "multilora_adapters_in_batch": MetricSpec(False, "Distinct adapters in the last forward pass"),
    "multilora_max_adapters_in_batch": MetricSpec(
        False, "Largest number of distinct adapters in one forward pass"
    ),
    "multilora_adapter_hits_total": MetricSpec(
        True, "Requests whose adapter stood in the device pool when they were admitted"
    ),
    "multilora_adapter_misses_total": MetricSpec(
        True, "Requests whose adapter had to be brought into the device pool first"
    ),
    "multilora_adapter_reads_total": MetricSpec(True, "Adapters brought into host memory"),
    "multilora_adapter_read_failures_total": MetricSpec(
        True, "Adapters that could not be brought into host memory"
    ),
    "multilora_adapter_read_seconds_total": MetricSpec(
        True, "Seconds spent on bringing adapters into host memory"
    ),
    "multilora_adapter_host_bytes_used": MetricSpec(False, "Host memory that adapters take"),
    "multilora_adapter_host_bytes": MetricSpec(False, "Host memory that adapters may take"),
    "multilora_adapters_loading": MetricSpec(False, "Adapters being brought into host memory"),
    "multilora_adapters_resident": MetricSpec(False, "Adapters in the device pool"),
    "multilora_adapters_known": MetricSpec(
        False, "Adapters that requests may name: registered or found in the adapters directory"
    ),
}


@dataclass(frozen=True)
class AdapterFigures:
    """What single adapters do, at one moment. Filled by the engine thread.

    `requests` and `tokens` are counters by label (see AdapterCounts), `running` and `waiting` the
    ids of adapters that have such sequences; `max_lora` adapters may run at once.
    """

    requests: Mapping[str, int]
    tokens: Mapping[str, int]
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    max_lora: int


class CountFigures(NamedTuple):
    """Label → sum; never changes."""

    requests: Mapping[str, int]
    tokens: Mapping[str, int]


@dataclass(eq=False)
class AdapterUsage:
    """Filled by AdapterCounts. `in_other` is the part (requests, tokens) that `_other` shows."""

    requests: int = 0
    tokens: int = 0  # generated
    in_other: tuple[int, int] = (0, 0)

    @property
    def labelled(self) -> tuple[int, int]:
        """The part (requests, tokens) that the adapter's own label shows."""
        return self.requests - self.in_other[0], self.tokens - self.in_other[1]


class AdapterCounts:
    """Counts, and labels the `limit` adapters used most recently. One thread.

    Laws: a figure never falls, and nothing is counted twice or lost. The count of an adapter is its
    AdapterUsage, from which every view is made. An adapter that loses its label is added to
    `_other`; when it gets a label again, that starts at 0. `usage_of` finds the usage of an
    adapter; None: nothing is known of the adapter any more.
    """

    def __init__(self, limit: int, usage_of: Callable[[str], AdapterUsage | None]) -> None:
        self._limit = limit
        self._usage_of = usage_of
        self._base = AdapterUsage()
        self._other = AdapterUsage()
        self._recent: OrderedDict[str, AdapterUsage] = OrderedDict()  # by label

    def request(self, adapter_id: str) -> None:
        """One request more; "" is the base model."""
        self._count(adapter_id, 1, 0)

    def tokens(self, adapter_id: str, count: int) -> None:
        """`count` generated tokens more."""
        self._count(adapter_id, 0, count)

    def figures(self) -> CountFigures:
        """For any thread: a copy, of at most limit + 2 labels."""
        usages = {BASE_LABEL: self._base, OTHER_LABEL: self._other, **self._recent}
        shown = {label: usage.labelled for label, usage in usages.items() if any(usage.labelled)}
        return CountFigures(
            MappingProxyType({label: requests for label, (requests, _) in shown.items()}),
            MappingProxyType({label: tokens for label, (_, tokens) in shown.items()}),
        )

    def _count(self, adapter_id: str, requests: int, tokens: int) -> None:
        usage = self._usage_of(adapter_id) if adapter_id else self._base
        if usage is None:
            usage = self._other
        elif adapter_id:
            self._label(adapter_label(adapter_id), usage)
        usage.requests += requests
        usage.tokens += tokens
        if len(self._recent) > self._limit:
            _, oldest = self._recent.popitem(last=False)
            more_requests, more_tokens = oldest.labelled
            self._other.requests += more_requests
            self._other.tokens += more_tokens
            oldest.in_other = (oldest.requests, oldest.tokens)

    def _label(self, label: str, usage: AdapterUsage) -> None:
        """Make this the label that was used last."""
        before = self._recent.pop(label, usage)
        if before is not usage:  # the adapter was forgotten and named again: its label goes on
            shown_requests, shown_tokens = before.labelled
            usage.in_other = (usage.requests - shown_requests, usage.tokens - shown_tokens)
        self._recent[label] = usage


@lru_cache(maxsize=4096)
def adapter_label(adapter_id: str) -> str:
    """The value of a metric label: an id as it is, unless a label cannot hold it.

    Different ids have different labels. Quotes and the like are the exporter's to escape.
    """
    clean = "".join("?" if unicodedata.category(c) in UNPRINTABLE else c for c in adapter_id)
    if clean == adapter_id and len(clean) <= _MAX_LABEL and clean not in (BASE_LABEL, OTHER_LABEL):
        return adapter_id
    digest = hashlib.sha256(adapter_id.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{clean[: _MAX_LABEL - _DIGEST - 1]}~{digest}"


class EngineMetrics:
    """Counts what the engine does. The engine thread writes, any thread reads the snapshots."""

    def __init__(
        self, adapter_limit: int, max_lora: int, usage_of: Callable[[str], AdapterUsage | None]
    ) -> None:
        """`adapter_limit` adapters have figures of their own, which `usage_of` finds; `max_lora`
        may run at once."""
        self.snapshot = dict.fromkeys(METRICS, 0.0)
        self.figures = AdapterFigures({}, {}, (), (), max_lora)
        self._counts = dict(self.snapshot)
        self._adapters = AdapterCounts(adapter_limit, usage_of)
        self._described_at = 0.0

    def request(self, adapter_id: str, prompt_tokens: int) -> None:
        """A request was accepted."""
        self._adapters.request(adapter_id)
        self._counts["multilora_requests_total"] += 1
        self._counts["multilora_prompt_tokens_total"] += prompt_tokens

    def step(self, num_adapters: int, ran: bool) -> None:
        """A step was made; `ran`: there was something to compute."""
        counts = self._counts
        counts["multilora_steps_total"] += ran
        counts["multilora_adapters_in_batch"] = num_adapters
        most = max(counts["multilora_max_adapters_in_batch"], num_adapters)
        counts["multilora_max_adapters_in_batch"] = most

    def token(self, adapter_id: str) -> None:
        """A token was generated."""
        self._adapters.tokens(adapter_id, 1)
        self._counts["multilora_generated_tokens_total"] += 1

    def publish(self, gauges: Mapping[str, float]) -> None:
        """`gauges` are values that other parts keep."""
        self._counts.update(gauges)
        self.snapshot = dict(self._counts)

    @property
    def is_description_old(self) -> bool:
        return time.monotonic() - self._described_at > _DESCRIBE_SECONDS

    def describe(self, counts: Mapping[str, tuple[int, int]]) -> None:
        """`counts`: adapter id → how many of its sequences run and wait."""
        requests, tokens = self._adapters.figures()
        self.figures = AdapterFigures(
            requests=requests,
            tokens=tokens,
            running=tuple(name for name, (running, _) in counts.items() if running),
            waiting=tuple(name for name, (_, waiting) in counts.items() if waiting),
            max_lora=self.figures.max_lora,
        )
        self._described_at = time.monotonic()

"""The engine's figures, as they appear on the Triton server's /metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


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

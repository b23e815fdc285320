"""The engine's figures, as they appear on the Triton server's /metrics."""

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
}

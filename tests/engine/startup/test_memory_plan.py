"""The memory plan: boundaries to the byte, laws on random machines, and what it says."""

import dataclasses
import re
from collections import Counter

import pytest

from multilora.base_model.weights import QuantisedSites
from multilora.errors import StartupError
from multilora.startup.memory_plan import (
    HOST_POOL,
    GpuMemory,
    MemoryPlan,
    PoolSettings,
    PoolUnits,
    plan_gpu,
    plan_host,
    quantised_lines,
    size_text,
)

GIB = 1 << 30
AUTO = PoolSettings(0, 0)
UNITS = PoolUnits(
    block_bytes=1000,
    block_tokens=16,
    max_total_tokens=100,  # 7 blocks
    page_bytes=300,
    page_ranks=16,
    max_lora_rank=40,  # 3 pages
)
LEAST = 7 * 1000 + 3 * 300


def gpu_with(left: int, **changes: int | float) -> GpuMemory:
    """A GPU of 10**6 bytes, used to the last, with `left` for the pools."""
    facts = GpuMemory(10**6, 50, 0, 70, 30, 1.0)
    facts = dataclasses.replace(facts, **changes)  # type: ignore[arg-type]
    facts = dataclasses.replace(facts, weights=facts.left - left)
    assert facts.left == left
    return facts


def refusal(gpu: GpuMemory, units: PoolUnits, settings: PoolSettings) -> str:
    with pytest.raises(StartupError) as caught:
        plan_gpu(gpu, units, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_left_is_the_budget_without_what_others_and_we_use():
    gpu = GpuMemory(80 * GIB, 3 * GIB, 16 * GIB, 2 * GIB, GIB, 0.9)
    assert gpu.budget == 72 * GIB
    assert gpu.left == 50 * GIB


def test_auto_gives_a_fifth_to_adapters_and_the_rest_to_the_kv_cache():
    plan = plan_gpu(gpu_with(100_000), UNITS, AUTO)
    assert (plan.adapter_pages, plan.kv_blocks) == (20_000 // 300, 80)


def test_a_small_fifth_becomes_one_adapter_of_the_largest_rank():
    units = dataclasses.replace(UNITS, max_lora_rank=160)  # 10 pages
    plan = plan_gpu(gpu_with(11_000), units, AUTO)
    assert (plan.adapter_pages, plan.kv_blocks) == (10, 8)


def test_the_fifth_shrinks_where_the_kv_cache_needs_it():
    plan = plan_gpu(gpu_with(8_200), UNITS, AUTO)  # a fifth would be 1640: 5 pages
    assert (plan.adapter_pages, plan.kv_blocks) == (4, 7)


def test_the_least_that_fits_fits_and_a_byte_less_does_not():
    plan = plan_gpu(gpu_with(LEAST), UNITS, AUTO)
    assert (plan.adapter_pages, plan.kv_blocks) == (3, 7)
    message = refusal(gpu_with(LEAST - 1), UNITS, AUTO)
    assert "short by 1 bytes" in message
    assert "100 tokens needs 7000 bytes" in message and "rank 40 needs 900 bytes" in message


@pytest.mark.parametrize(
    ("left", "settings", "plan"),
    [
        (19_000, PoolSettings(9_999, 0), (9, 3_800 // 300)),  # adapters: a fifth all the same
        (11_000, PoolSettings(9_999, 0), (9, 1_001 // 300)),  # or what there is
        (10_000, PoolSettings(0, 700), (9, 2)),
        (10_000, PoolSettings(7_000, 300), (7, 1)),
    ],
)
def test_sizes_that_are_given_are_kept(left: int, settings: PoolSettings, plan: tuple[int, int]):
    got = plan_gpu(gpu_with(left), UNITS, settings)
    assert (got.kv_blocks, got.adapter_pages) == plan


def test_given_sizes_fit_to_the_byte_or_say_what_is_short():
    settings = PoolSettings(8_000, 600)
    plan = plan_gpu(gpu_with(8_600), UNITS, settings)
    assert (plan.kv_blocks, plan.adapter_pages) == (8, 2)
    message = refusal(gpu_with(8_599), UNITS, settings)
    assert "short by 1 bytes" in message
    assert "--kv-cache-memory is 8000 bytes and --adapter-memory is 600 bytes" in message
    assert "lower --kv-cache-memory, or lower --adapter-memory" in message
    assert "--max-total-tokens" not in message and "--max-lora-rank" not in message


@pytest.mark.parametrize("on_gpu", [True, False])
def test_sizes_too_small_to_be_of_use(on_gpu: bool):
    def plan(kv: int, adapters: int) -> MemoryPlan:
        settings = PoolSettings(kv, adapters)
        return plan_gpu(gpu_with(10**5), UNITS, settings) if on_gpu else plan_host(UNITS, settings)

    assert plan(7_000, 0).kv_blocks == 7
    with pytest.raises(StartupError, match="kv_cache_memory 6999 holds 96 tokens but") as caught:
        plan(6_999, 0)
    assert "max_total_tokens is 100" in str(caught.value)
    assert "raise --kv-cache-memory to at least 7000 or" in str(caught.value)
    assert plan(0, 300).adapter_pages == 1
    with pytest.raises(StartupError, match="adapter_memory 299 is less than one page of 16 ranks"):
        plan(0, 299)


def test_a_cpu_has_a_gibibyte_of_each_or_what_is_given():
    plan = plan_host(UNITS, AUTO)
    assert (plan.kv_blocks, plan.adapter_pages) == (HOST_POOL // 1000, HOST_POOL // 300)
    assert len(plan.lines) == 3 and all("1.00 GiB" in line for line in plan.lines[1:])
    plan = plan_host(UNITS, PoolSettings(8_000, 300))
    assert (plan.kv_blocks, plan.adapter_pages) == (8, 1)
    huge = dataclasses.replace(UNITS, block_bytes=HOST_POOL)
    with pytest.raises(StartupError, match=f"to at least {7 * HOST_POOL}"):
        plan_host(huge, AUTO)


def test_every_remedy_is_named_where_it_can_help_and_only_there():
    def remedies(units: PoolUnits = UNITS, **changes: int | float) -> list[str]:
        message = refusal(gpu_with(LEAST - 100, **changes), units, AUTO)
        return message.rpartition("; ")[2].split(", or ")

    least = [
        "lower --max-total-tokens",
        "lower --max-lora-rank",
        "lower --max-batch-prefill-tokens",
        "set --cuda-graphs decode or off",
        "choose a smaller base model",
    ]
    assert remedies() == least
    assert remedies(utilization=0.9) == ["raise --gpu-memory-utilization to 0.901", *least]
    crowded = remedies(total=4 * GIB, elsewhere=2 * GIB)
    assert crowded == ["end other processes on the GPU", *least]
    assert remedies(graphs=0) == [*least[:3], least[4]]
    assert remedies(activations=0) == [*least[:2], *least[3:]]
    small = dataclasses.replace(UNITS, max_lora_rank=16, page_bytes=900)
    assert remedies(small) == [least[0], *least[2:]]


def test_weights_that_fill_the_gpu_are_an_error_too():
    message = refusal(gpu_with(-5_000), UNITS, AUTO)
    assert f"short by {LEAST + 5_000} bytes" in message and "leaves -5000 bytes" in message


def test_the_table_says_what_went_where():
    units = PoolUnits(2 << 20, 16, 4096, 84 << 20, 16, 128)
    gpu = GpuMemory(80 * GIB, GIB // 2, 15 * GIB, GIB, GIB // 4, 0.9)
    plan = plan_gpu(gpu, units, AUTO)
    table = {
        match[1]: (match[2], match[3].strip())
        for line in plan.lines[1:]
        if (match := re.fullmatch(r"  (\w[\w ]*?) {2,}([\d.]+ \w+)(.*)", line))
    }
    assert plan.lines[0].startswith("GPU memory 80.00 GiB, of which --gpu-memory-utilization 0.9")
    assert plan.lines[0].endswith("allows 72.00 GiB:")
    assert len(table) == len(plan.lines) - 1, plan.lines
    assert table["used elsewhere"][0] == "512.0 MiB"
    assert table["base model"][0] == "15.00 GiB"
    assert table["forward pass"][0] == "1.00 GiB"
    assert table["CUDA graphs"][0] == "256.0 MiB"
    pages, blocks = plan.adapter_pages, plan.kv_blocks
    assert table["adapters"] == (
        size_text(pages * (84 << 20)), f"{pages} of rank 16 or less, {pages // 8} of rank 128"
    )  # fmt: skip
    assert table["KV cache"] == (
        size_text(blocks * (2 << 20)), f"{blocks * 16} tokens, {blocks * 16 // 4096} sequences of "
        "4096"
    )  # fmt: skip
    assert max(map(len, plan.lines)) <= 100
    off = plan_gpu(dataclasses.replace(gpu, graphs=0), units, AUTO)
    assert any(re.search(r"CUDA graphs +0 bytes +none", line) for line in off.lines)


def test_the_part_of_pages_that_tables_take_has_a_line() -> None:
    units = dataclasses.replace(UNITS, optional=("embed_tokens", "lm_head"), optional_bytes=100)
    plan = plan_host(units, AUTO)
    (line,) = set(plan.lines) - set(plan_host(UNITS, AUTO).lines)
    size = size_text(plan.adapter_pages * 100)
    assert line.split(maxsplit=2)[:2] == ["of", "them"]
    assert size in line and line.endswith("for embed_tokens and lm_head")


def test_a_tiny_model_on_a_large_gpu_does_not_burden_the_host():
    plan = plan_gpu(GpuMemory(80 * GIB, 0, 0, 0, 0, 1.0), UNITS, AUTO)
    assert plan.kv_blocks == plan.adapter_pages == 1 << 20
    long = dataclasses.replace(UNITS, block_bytes=8, max_total_tokens=17 << 20)
    plan = plan_gpu(GpuMemory(80 * GIB, 0, 0, 0, 0, 1.0), long, AUTO)
    assert plan.kv_blocks == long.least_blocks > 1 << 20


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (3 << 19, "1.5 MiB"), (13 << 28, "3.25 GiB"),
     (-GIB, "-1.00 GiB"), (GIB - 1, "1.00 GiB")],
)  # fmt: skip
def test_sizes_as_text(size: int, text: str):
    assert size_text(size) == text


def test_what_became_of_quantised_linear_layers_is_said():
    sites = QuantisedSites("awq", "bfloat16", Counter({"int4": 3}), 3 << 20, 11 << 20)
    line = "linear layers, quantised with awq: 3 of 3 as int4; 3.0 MiB, all in bfloat16 11.0 MiB"
    assert quantised_lines(sites) == (line,)
    sites.reason = "there is no product of that"  # of the checkpoint's form; quantised anew
    assert quantised_lines(sites) == (line,)
    sites.forms["bfloat16"] = 1
    (line,) = quantised_lines(sites)
    assert "3 of 4 as int4, 1 of 4 as bfloat16 (there is no product of that); 3.0 MiB" in line
    assert quantised_lines(None) == ()

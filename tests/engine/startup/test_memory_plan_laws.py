"""Laws of the memory plan, on thousands of random machines."""

import dataclasses
import random
import re
from collections.abc import Iterator

import pytest

from multilora.errors import StartupError
from multilora.startup.memory_plan import GpuMemory, MemoryPlan, PoolSettings, PoolUnits, plan_gpu


def machines(count: int) -> Iterator[tuple[GpuMemory, PoolUnits, PoolSettings]]:
    """From hopelessly small to roomy, with and without given sizes."""
    for seed in range(count):
        draw = random.Random(seed)
        units = PoolUnits(
            draw.randint(1, 5000), draw.choice([8, 16, 32]), draw.randint(2, 3000),
            draw.randint(1, 9000), 16, draw.randint(1, 256),
        )  # fmt: skip
        least = units.least_blocks * units.block_bytes
        kv = draw.choice([0, 0, least + draw.randint(0, 3 * least)])
        adapters = draw.choice([0, 0, draw.randint(1, 40) * units.page_bytes])
        wanted = (kv or least) + (adapters or units.pages_of_largest * units.page_bytes)
        total = draw.randint(1, 8 * wanted) + 1000
        used = [draw.randint(0, total // 8) for _ in range(4)]
        gpu = GpuMemory(total, *used, utilization=draw.randint(1, 1000) / 1000)
        yield gpu, units, PoolSettings(kv, adapters)


def test_laws_on_random_machines():
    fitted = 0
    for gpu, units, settings in machines(3000):
        try:
            plan = plan_gpu(gpu, units, settings)
        except StartupError:
            continue
        fitted += 1
        kv, adapters = plan.kv_blocks * units.block_bytes, plan.adapter_pages * units.page_bytes
        used = gpu.elsewhere + gpu.weights + gpu.activations + gpu.graphs + kv + adapters
        assert used <= gpu.budget <= gpu.total
        assert plan.kv_blocks * units.block_tokens >= units.max_total_tokens
        if settings.adapter_memory:
            assert plan.adapter_pages == settings.adapter_memory // units.page_bytes
        else:
            assert plan.adapter_pages * 16 >= units.max_lora_rank
        if settings.kv_cache_memory:
            assert plan.kv_blocks == settings.kv_cache_memory // units.block_bytes
        elif settings.adapter_memory:
            assert gpu.budget - used < units.block_bytes + units.page_bytes, "some is wasted"
    assert 1000 < fitted < 2800, "the machines are all alike"


def test_more_memory_never_gives_less():
    for gpu, units, settings in machines(600):
        before: MemoryPlan | None = None
        step = max(1, gpu.total // 37)
        for more in range(0, 40 * step, step):
            larger = dataclasses.replace(gpu, total=gpu.total + more)
            try:
                plan = plan_gpu(larger, units, settings)
            except StartupError:
                assert before is None, "it fitted with less"
                continue
            if before:
                assert plan.kv_blocks >= before.kv_blocks
                assert plan.adapter_pages >= before.adapter_pages
            before = plan


def test_what_is_short_is_exactly_what_is_missing():
    """With that much more it fits, with a byte less than that it does not; and the utilization
    that the message names is enough."""
    named = 0
    for gpu, units, settings in machines(1500):
        try:
            plan_gpu(gpu, units, settings)
            continue
        except StartupError as error:
            message = str(error)
        match = re.search(r"short by (\d+) bytes", message)
        assert match and "\n" not in message
        short = int(match[1])
        room = dataclasses.replace(gpu, weights=gpu.weights - short)
        plan_gpu(room, units, settings)
        with pytest.raises(StartupError, match="short by 1 bytes"):
            plan_gpu(dataclasses.replace(room, weights=room.weights + 1), units, settings)
        if remedy := re.search(r"raise --gpu-memory-utilization to ([\d.]+)", message):
            assert gpu.utilization < float(remedy[1]) <= 1
            plan_gpu(dataclasses.replace(gpu, utilization=float(remedy[1])), units, settings)
            named += 1
        else:
            with pytest.raises(StartupError):
                plan_gpu(dataclasses.replace(gpu, utilization=1.0), units, settings)
    assert named > 50

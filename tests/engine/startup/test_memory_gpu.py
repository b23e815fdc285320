"""On a GPU: the plan is kept while the engine works, and leaves nothing of the trial behind."""

import gc

import pytest
import torch

from multilora.config import DEMO, EngineConfig
from multilora.engine import Engine
from multilora.forward.base_model import KVCache
from multilora.startup.device import choose_device, gather, problem
from support.engine.requests import drain, request

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]
SLACK = 256 << 20  # what torch rounds up, and what CUDA loads later


def test_this_gpu_passes_the_check():
    assert problem(gather()) == ""
    assert choose_device("cuda") == choose_device("auto") == torch.device("cuda")


@pytest.mark.parametrize("graphs", ["full", "decode", "off"])
def test_an_engine_at_work_stays_within_its_part_of_the_gpu(graphs: str):
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    part = (total - free + (8 << 30)) / total
    if part > 1:
        pytest.skip("the GPU has less than 8 GiB free")
    config = EngineConfig(device="cuda", gpu_memory_utilization=part, cuda_graphs=graphs)
    engine = Engine(config)
    engine.start()
    try:
        kv = engine._parts.runner.kv
        dtype = kv.k.dtype
        block = KVCache.bytes_per_block(engine.base, config.kv_block_size, dtype)
        assert kv.num_blocks * block + engine._parts.runner.adapters.nbytes > 1 << 30
        adapters = sorted(path.name for path in (DEMO / "adapters").iterdir())
        crowd = [
            request(f"{adapter}{number}", adapter, length=200, temperature=0.8, top_p=0.9, seed=1)
            for adapter in ["", *adapters]
            for number in range(8)
        ]
        for one in crowd:
            engine.submit(one)
        outputs = drain(engine, len(crowd))
        assert all(given[-1].error is None for given in outputs.values())
        free, total = torch.cuda.mem_get_info()
        assert total - free <= part * total + SLACK
    finally:
        engine.close()

"""The engine on a GPU: its kernels give the tokens that the CPU path gives."""

from pathlib import Path

import pytest
import torch

from multilora.config import DEMO, EngineConfig
from multilora.engine import Engine
from multilora.request import Request
from multilora_api.sampling import SamplingParams
from support.tiny.base import write_adapter, write_base

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]


def answers(config: EngineConfig, requests: list[Request]) -> dict[str, list[int]]:
    """All requests at once → the token ids of each."""
    engine = Engine(config)
    engine.start()
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    try:
        for request in requests:
            engine.submit(request)
        left = len(requests)
        while left:
            for output in engine.outputs.get(timeout=120) or []:
                assert output.error is None
                left -= output.finish_reason is not None
                if output.token_id is not None:
                    tokens[output.request_id].append(output.token_id)
        assert engine.metrics()["multilora_max_adapters_in_batch"] >= 5
    finally:
        engine.close()
    return tokens


def crowd(adapter_ids: list[str], vocab: int) -> list[Request]:
    return [
        Request(
            f"{adapter}-{length}",
            tuple((31 * length + 7 * i) % vocab for i in range(length)),
            adapter,
            SamplingParams(max_tokens=16, ignore_eos=True),
        )
        for adapter in ["", *adapter_ids]
        for length in (3, 17, 70)
    ]


def test_a_random_base_in_float32_gives_the_tokens_of_the_cpu(tmp_path: Path):
    ranks = {"a": 4, "b": 16, "c": 24, "d": 64, "e": 128}
    write_base(tmp_path / "base")
    for seed, (name, rank) in enumerate(ranks.items()):
        write_adapter(tmp_path / name, seed=seed, rank=rank)
    listed = ",".join(f"{name}={tmp_path / name}" for name in ranks)
    both = [
        answers(
            EngineConfig(model_id=str(tmp_path / "base"), lora_adapters=listed, dtype="float32",
                         device=device, adapter_memory=1 << 26, kv_cache_memory=1 << 26),
            crowd(list(ranks), 120),
        )
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    assert both[0] == both[1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_demo_agrees_with_the_cpu(dtype: str):
    """A trained model is sure of its tokens, so half precision changes few answers."""
    adapters = [path.name for path in sorted((DEMO / "adapters").iterdir())]
    cpu, gpu = (
        answers(EngineConfig(dtype=name, device=device), crowd(adapters, 256))
        for name, device in (("float32", "cpu"), (dtype, "cuda"))
    )
    first = [gpu[name][0] == cpu[name][0] for name in cpu]
    assert sum(first) >= 0.9 * len(first), "the first tokens differ"

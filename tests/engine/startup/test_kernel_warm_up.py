"""No batch needs a kernel that was not compiled at start: for GPUs of 20 and 132 multiprocessors.

Passes run on the meta device, where tensors have shapes and nothing else; the kernels take notes.
"""

import random
from array import array
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from multilora.base_model.config import NativeConfig, RopeConfig
from multilora.base_model.sites import TABLES
from multilora.base_model.weights import DenseWeight, LayerNorms, Weights
from multilora.forward.base_model import KVCache
from multilora.forward.decoder import Decoder, load_decoder
from multilora.forward.graphs import GraphLimits, PassGraphs
from multilora.forward.runner import ModelRunner
from multilora.forward.step_input import build_step_input
from multilora.lora import linear as lora_linear
from multilora.lora.rank_pages import RankPagePool
from multilora.request import AdapterSet, Request
from multilora.scheduling.batch import Batch, BatchItem, make_batch
from multilora.scheduling.sequence import Sequence
from multilora.startup.kernel_warm_up import warm_up, warm_up_batches
from multilora_kernels import (
    expand,
    lora,
    paged_attention,
    paged_decode,
    paged_prefill,
    rms_norm,
    rope_kv_write,
    shrink,
    swiglu,
    unpaged_prefill,
)
from support.kernels.aot import record, variant

META = torch.device("meta")
DTYPE = torch.bfloat16
KERNELS: dict[str, ModuleType] = {
    "shrink_kernel": shrink, "expand_kernel": expand, "rms_norm_kernel": rms_norm,
    "rope_kv_write_kernel": rope_kv_write, "swiglu_kernel": swiglu, "swiglu_expand_kernel": swiglu,
    "paged_decode_kernel": paged_decode, "decode_plan_kernel": paged_decode,
    "paged_prefill_kernel": paged_prefill, "unpaged_prefill_kernel": unpaged_prefill,
}  # fmt: skip
LIMITS, PREFILL, BLOCK = GraphLimits(64, 4096, 8), 2048, 16


def base(hidden: int, intermediate: int, heads: int, kv_heads: int, window: int | None):
    return NativeConfig(
        architecture="LlamaForCausalLM", vocab_size=1000, hidden_size=hidden,
        intermediate_size=intermediate, num_layers=1, num_heads=heads, num_kv_heads=kv_heads,
        head_dim=hidden // heads, rms_norm_eps=1e-5, rope=RopeConfig(), tie_word_embeddings=True,
        max_position_embeddings=4096, qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm=False,
        layer_windows=(window,), dtype="bfloat16",
    )  # fmt: skip


def decoder(config: NativeConfig) -> Decoder:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=DTYPE, device=META)

    hidden = config.hidden_size
    sites = {
        site.name: DenseWeight(empty(site.out_features, site.in_features), bias=None)
        for site in config.layer_sites
    }
    norms = LayerNorms(attention=empty(hidden), mlp=empty(hidden), qk=None)
    embed = empty(config.vocab_size, hidden)
    weights = Weights(embed, sites, (norms,) * config.num_layers, empty(hidden), embed)
    return Decoder(config, weights, META)


def random_batch(noise: random.Random) -> Batch:
    """Decode and prefill, base rows and adapters of any number of pages, within the limits."""
    items: list[BatchItem] = []
    pages: dict[AdapterSet, tuple[int, ...]] = {}
    budget = noise.choice([1, 5, 40, 300, PREFILL])
    for index in range(noise.randint(1, noise.choice([1, 4, LIMITS.rows]))):
        new = min(budget, noise.choice([1, 1, noise.randint(1, 20), noise.randint(1, PREFILL)]))
        budget -= new if new > 1 else 0
        new = max(1, new)
        computed = noise.choice([0, noise.randint(0, LIMITS.context - new)])
        sequence = Sequence(Request(str(index), (0,) * (computed + new)), index)
        sequence.num_computed_tokens = computed
        sequence.block_table = array("i", [0]) * -(-(computed + new) // BLOCK)
        if noise.random() < 0.7:
            sequence.adapters = key = AdapterSet.of(str(noise.randint(0, index)))
            pages.setdefault(key, tuple(range(noise.randint(1, LIMITS.pages_per_adapter))))
        items.append(BatchItem.next(sequence, new))
    return make_batch(items, pages)


@pytest.mark.parametrize("multiprocessors", [20, 132])
@pytest.mark.parametrize(
    "config",
    [
        base(64, 96, 4, 2, None),
        base(896, 4864, 14, 2, 512).with_places(TABLES),
        base(4096, 14336, 32, 8, None),
    ],
    ids=["tiny", "0.5B with tables", "8B"],
)
def test_warm_up_covers_every_batch(
    config: NativeConfig, multiprocessors: int, monkeypatch: pytest.MonkeyPatch
):
    for module in (lora_linear, lora, paged_attention, rms_norm, rope_kv_write, swiglu):
        monkeypatch.setattr(module, "uses_kernels", lambda _: True)
    for module in (expand, paged_decode, shrink):
        monkeypatch.setattr(module, "num_programs", lambda _, count: multiprocessors * count)
    monkeypatch.setattr(unpaged_prefill, "has_tensor_descriptors", lambda _: True)
    model = decoder(config)
    kv = KVCache(config, 300, BLOCK, DTYPE, META)
    adapters = RankPagePool(config.sites, 64, DTYPE, META)

    def variants(batches: Iterable[Batch]) -> dict[str, Batch]:
        found: dict[str, Batch] = {}
        for batch in batches:
            queries = paged_prefill.prefill_queries(config.num_heads, kv.k)
            inputs = build_step_input(batch, BLOCK, META, DTYPE, queries, config.adapts_sampled)
            launches = record(lambda inputs=inputs: model.forward(inputs, kv, adapters), KERNELS,
                              monkeypatch)  # fmt: skip
            found |= {f"{launch.kernel.__name__} {variant(launch)}": batch for launch in launches}
        return found

    compiled = variants(warm_up_batches(LIMITS, PREFILL, BLOCK))
    noise = random.Random(7)
    needed = variants(random_batch(noise) for _ in range(150))
    missing = {name for name in needed if name not in compiled}
    assert not missing, "\n".join(sorted(missing))
    assert len(needed) > len(KERNELS)


@pytest.mark.parametrize("limits", [GraphLimits(1, 7, 1), GraphLimits(12, 24, 3), LIMITS])
@pytest.mark.parametrize("prefill", [1, 100, 2048])
def test_no_batch_is_larger_than_one_that_is_served(limits: GraphLimits, prefill: int):
    """More tokens than a sequence may have would read past the end of the RoPE table."""
    sizes: set[int] = set()
    for batch in warm_up_batches(limits, prefill, BLOCK):
        sizes.add(batch.num_tokens)
        assert len(batch.items) <= limits.rows
        lengths = {len(item.sequence.token_ids) for item in batch.items}
        assert max(lengths) <= limits.context
        assert lengths == {limits.context} or not batch.spans
        assert all(item.samples and item.num_new_tokens > 0 for item in batch.items)
        assert sum(span.row_count for span in batch.spans) in (0, batch.num_tokens)
    assert max(sizes) == min(prefill + limits.rows, limits.rows * limits.context)


def test_warm_up_beside_captured_passes_and_a_pool_smaller_than_an_adapter(folder: Path):
    """On a CPU, which says where an index is out of range."""
    config, cpu = NativeConfig.from_folder(folder / "base"), torch.device("cpu")
    model = load_decoder(folder / "base", config, torch.float32, cpu)
    kv = KVCache(config, 2, BLOCK, torch.float32, cpu)
    adapters = RankPagePool(config.sites, 2, torch.float32, cpu)
    limits = GraphLimits(12, config.max_position_embeddings, 3, mixed_rows=32)
    graphs = PassGraphs(model, kv, adapters, limits, cpu)
    graphs.capture()
    runner = ModelRunner(model, kv, adapters, (), cpu, torch.float32, graphs)
    warm_up(runner, limits, 2 * config.max_position_embeddings)

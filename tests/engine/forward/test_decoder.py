"""The decoder's logits equal transformers' for every architecture, however the work is batched."""

from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from multilora.base_model.config import BaseConfig
from multilora.forward.decoder import Decoder, load_decoder
from multilora.forward.graphs import Bucket, GraphLimits, PassGraphs
from multilora.forward.kv_cache import KVCache
from multilora.forward.step_input import build_step_input, step_arrays
from multilora.lora.rank_pages import RankPagePool
from multilora.request import Request
from multilora.scheduling.batch import Batch, BatchItem
from multilora.scheduling.sequence import Sequence
from support.kernels.cases import DEVICE
from support.tiny.families import VARIANTS, VOCAB, make_model, write_model

CPU = torch.device("cpu")
BLOCK_SIZE, NUM_BLOCKS = 8, 32
PROMPTS = {"a": 20, "b": 23, "c": 3, "d": 40}
# Whole prefill; chunks on top of a cached prefix; decode beside prefill; decode alone.
STEPS = (
    {"a": 20, "b": 7},
    {"a": 1, "b": 9, "c": 3},
    {"a": 1, "b": 7, "c": 1, "d": 33},
    {"a": 1, "b": 1, "c": 1, "d": 7},
    {"a": 1, "b": 1, "c": 1, "d": 1},
)


def tokens_of(name: str, count: int) -> list[int]:
    noise = torch.Generator().manual_seed(ord(name))
    return torch.randint(2, VOCAB, (count,), generator=noise).tolist()


def reference(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Logits after every token, [len(tokens), vocab]."""
    with torch.no_grad():
        return model(torch.tensor([tokens], device=model.device)).logits[0]


def sequences(prompts: dict[str, int]) -> dict[str, Sequence]:
    """One sequence per prompt, on blocks that lie in no order."""
    blocks = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(3)).tolist()
    made = {}
    for name, length in prompts.items():
        sequence = Sequence(Request(name, tuple(tokens_of(name, length))))
        count = -(-(length + 8) // BLOCK_SIZE)
        sequence.block_table = array("i", (blocks.pop() for _ in range(count)))
        made[name] = sequence
    return made


Forward = Callable[[Batch], torch.Tensor]  # logits [items that sample, vocab]


def eager(model: Decoder, kv: KVCache) -> Forward:
    def forward(batch: Batch) -> torch.Tensor:
        return model.forward(build_step_input(batch, BLOCK_SIZE, kv.k.device, kv.k.dtype), kv, None)

    return forward


def replayed(model: Decoder, kv: KVCache) -> Forward:
    """Every pass is one that was captured for more rows."""
    device = kv.k.device
    pages = RankPagePool(model.base.sites, 1, kv.k.dtype, device)
    graphs = PassGraphs(model, kv, pages, GraphLimits(4, 48, 1, mixed_rows=42), device)
    graphs.capture([Bucket(4), *(Bucket(rows, mixed=True) for rows in (16, 32, 64))])

    @torch.inference_mode()
    def forward(batch: Batch) -> torch.Tensor:
        arrays = step_arrays(batch, BLOCK_SIZE)
        captured = graphs.find(arrays)
        assert captured is not None
        staging, run = captured.prepare(arrays)
        staging.send()
        return run().clone()

    return forward


def run_steps(forward: Forward) -> dict[str, list[torch.Tensor]]:
    """Each sequence's logits at its sampled positions; the next token is then a given one."""
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in PROMPTS}
    live = sequences(PROMPTS)
    for step in STEPS:
        items = tuple(BatchItem.next(live[name], count) for name, count in step.items())
        rows = iter(forward(Batch(items, ())))
        for name, item in zip(step, items, strict=True):
            item.sequence.num_computed_tokens = item.end
            if item.samples:
                logits[name].append(next(rows))
                item.sequence.token_ids = tokens_of(name, item.end + 1)
        assert next(rows, None) is None
    return logits


def assert_same_logits(
    theirs: PreTrainedModel,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    tolerance: float = 1e-4,
    way: Callable[[Decoder, KVCache], Forward] = eager,
) -> None:
    """`tolerance` is relative to the largest logit of a sequence."""
    base = BaseConfig.from_folder(folder)
    model = load_decoder(folder, base, dtype, device)
    kv = KVCache(base, NUM_BLOCKS, BLOCK_SIZE, dtype, device)
    for name, rows in run_steps(way(model, kv)).items():
        first = PROMPTS[name] - 1
        expected = reference(theirs, tokens_of(name, PROMPTS[name] + len(rows)))
        expected = expected[first : first + len(rows)]
        ours = torch.stack(rows).cpu()
        assert ours.dtype == torch.float32
        scale = float(expected.abs().max())
        assert scale > 1, "logits too small to compare"
        torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str, tmp_path: Path) -> None:
    model = make_model(variant)
    assert_same_logits(model, write_model(model, tmp_path))


@pytest.mark.parametrize("variant", ["mistral-window", "qwen3-biases"])
def test_replayed_passes_equal_transformers(variant: str, tmp_path: Path) -> None:
    """On a CPU without the interpreter, too: there torch's own ops run on the static buffers."""
    model = make_model(variant)
    device = torch.device(DEVICE if torch.cuda.is_available() else "cpu")
    folder = write_model(model, tmp_path)
    assert_same_logits(model, folder, device=device, way=replayed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_model("qwen3")
    model = model.half() if dtype == torch.float16 else model.bfloat16()
    write_model(model, tmp_path)
    assert_same_logits(model.float(), tmp_path, dtype, tolerance=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("variant", ["llama", "mistral-window", "qwen2-window", "qwen3"])
def test_the_gpu_computes_the_same(variant: str, tmp_path: Path) -> None:
    model = make_model(variant).bfloat16()
    write_model(model, tmp_path)
    assert_same_logits(model.float(), tmp_path, torch.bfloat16, torch.device("cuda"), 0.05)


def test_windows_and_scaled_rope_change_the_logits() -> None:
    """The comparisons above would prove nothing if a variant computed the same as the plain one."""
    tokens = tokens_of("d", 40)
    plain = reference(make_model("llama"), tokens)
    for variant in ("mistral-window", "llama-linear", "llama-llama3", "llama-yarn"):
        assert not torch.allclose(reference(make_model(variant), tokens), plain, atol=0.05)

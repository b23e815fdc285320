"""Passes over a few sequences, chunked and mixed, whose logits are compared with transformers'."""

from array import array
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from multilora.forward.base_model import BaseModel, KVCache
from multilora.forward.graphs import Bucket, GraphLimits, PassGraphs
from multilora.forward.step_input import build_step_input, step_arrays
from multilora.lora.rank_pages import RankPagePool
from multilora.request import Request
from multilora.scheduling.batch import Batch, BatchItem
from multilora.scheduling.sequence import Sequence
from support.tiny.families import VOCAB

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


def eager(model: BaseModel, kv: KVCache) -> Forward:
    def forward(batch: Batch) -> torch.Tensor:
        return model.forward(build_step_input(batch, BLOCK_SIZE, kv.k.device, kv.k.dtype), kv, None)

    return forward


def replayed(model: BaseModel, kv: KVCache) -> Forward:
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
    model: BaseModel,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    tolerance: float = 1e-4,
    way: Callable[[BaseModel, KVCache], Forward] = eager,
) -> None:
    """`tolerance` is relative to the largest logit of a sequence."""
    kv = KVCache(model.base, NUM_BLOCKS, BLOCK_SIZE, dtype, device)
    for name, rows in run_steps(way(model, kv)).items():
        first = PROMPTS[name] - 1
        expected = reference(theirs, tokens_of(name, PROMPTS[name] + len(rows)))
        expected = expected[first : first + len(rows)]
        ours = torch.stack(rows).cpu()
        assert ours.dtype == torch.float32
        scale = float(expected.abs().max())
        assert scale > 1, "logits too small to compare"
        torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * scale)

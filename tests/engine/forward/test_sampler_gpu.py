"""The sampler on a GPU: the tokens of the CPU path, and no waiting."""

import pytest
import torch

from multilora.forward.sampler import sample
from support.engine.sampler import drawn, every_bound_kind, every_kind, inputs_of, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def test_cuda_picks_the_same_tokens() -> None:
    logits = torch.randn(64, 32000, generator=torch.Generator().manual_seed(7)) * 3
    items = every_kind(64)
    assert run(logits.cuda(), *items).token_ids.tolist() == run(logits, *items).token_ids.tolist()


def test_cuda_keeps_the_same_bounds() -> None:
    items = every_bound_kind()
    logits = torch.randn(len(items), 4000, generator=torch.Generator().manual_seed(8)) * 3
    assert run(logits.cuda(), *items).token_ids.tolist() == run(logits, *items).token_ids.tolist()


def test_sampling_does_not_wait_for_the_gpu() -> None:
    items = [*every_kind(35), *every_bound_kind(), drawn(7, typical_p=0.5)]
    logits = torch.randn(len(items), 4000, device="cuda")
    inputs = inputs_of(items, 4000, "cuda")
    sample(logits, inputs)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        sample(logits, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")

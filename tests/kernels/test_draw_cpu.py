"""The CPU path of draw against its reference."""

import pytest
import torch

from multilora_kernels.draw import draw_reference
from multilora_kernels.draw_cpu import draw_cpu
from support.kernels.draws import CLOSE, KINDS, draws_of, logits_of, mixed_draws


@pytest.mark.parametrize("vocab_size", [1, 7, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_reference(kind: str, vocab_size: int):
    logits = logits_of(kind, 120, vocab_size)
    draws = mixed_draws(torch.arange(120), vocab_size, seed=1)
    assert torch.equal(draw_cpu(logits, draws), draw_reference(logits, draws))


@pytest.mark.parametrize(("keys", "winner"), CLOSE, ids=str)
def test_the_finest_noise_and_its_ties(keys: tuple[int, int], winner: int):
    draws = draws_of(torch.tensor([0]), 5000, seed=0)
    draws = draws._replace(keys=torch.tensor([keys], dtype=torch.int32))
    assert draw_cpu(torch.zeros(1, 5000), draws).tolist() == [winner]
    assert draw_reference(torch.zeros(1, 5000), draws).tolist() == [winner]

"""The kernel that draws: on a GPU, or interpreted."""

import itertools
import math
from typing import Any

import pytest
import torch

from multilora_kernels.draw import draw_gpu, draw_reference
from multilora_kernels.draw_cpu import draw_cpu
from multilora_kernels.draws import Draws
from support.kernels.cases import DEVICE, INTERPRETED, needs_gpu
from support.kernels.draws import CLOSE, KINDS, draws_of, edge_cases, logits_of, mixed_draws

pytestmark = needs_gpu
ROWS = 6 if INTERPRETED else 300
LARGE = 5000 if INTERPRETED else 128256  # more than a block


def drawn(logits: torch.Tensor, draws: Draws) -> torch.Tensor:
    return draw_gpu(logits.to(DEVICE), draws).cpu()


def on_cpu(draws: Draws) -> Draws:
    return Draws._make(part.cpu() if isinstance(part, torch.Tensor) else part for part in draws)


@pytest.mark.parametrize(
    ("kind", "vocab_size"),
    [*itertools.product(KINDS, [1000, LARGE]), *itertools.product(("normal", "ties"), [1, 7])],
)
def test_tokens_are_those_of_the_cpu_path_and_the_reference(kind: str, vocab_size: int):
    logits = logits_of(kind, ROWS, vocab_size)
    draws = mixed_draws(torch.arange(ROWS), vocab_size, seed=vocab_size + len(kind), device=DEVICE)
    tokens = drawn(logits, draws)
    assert torch.equal(tokens, draw_cpu(logits, on_cpu(draws)))
    if vocab_size <= 5000:
        assert torch.equal(tokens, draw_reference(logits, on_cpu(draws)))


FILTERS: tuple[dict[str, Any], ...] = (
    {"top_k": 4999}, {"top_k": 4500}, {"top_k": 400, "top_p": 0.01}, {"top_p": 0.001},
    {"top_p": 1e-46}, {"top_k": 2, "min_p": 0.9}, {"min_p": 1.0, "top_p": 0.5},
)  # fmt: skip


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("kind", ["flat", "ties"])
def test_filters_that_take_many_rounds(kind: str, filters: dict[str, Any]):
    rows = 2 if INTERPRETED else 100
    logits = logits_of(kind, rows, 5000, seed=3)
    draws = draws_of(torch.arange(rows), 5000, seed=4, device=DEVICE, **filters)
    assert torch.equal(drawn(logits, draws), draw_reference(logits, on_cpu(draws)))


def test_the_edge_of_a_filter_is_exact():
    logits, draws = edge_cases(DEVICE)
    tokens, host = drawn(logits, draws), on_cpu(draws)
    assert torch.equal(tokens, draw_reference(logits, host))
    unfiltered = host._replace(top_k=host.top_k * 0, top_p=torch.ones_like(host.top_p))
    let_in = (tokens == draw_reference(logits, unfiltered)).sum()
    assert 10 < let_in < len(tokens) - 10


def test_rows_are_picked_out_of_strided_logits_which_stay_as_they_are():
    wide = torch.full((6, 140), torch.nan, device=DEVICE)
    wide[:, :100] = logits_of("normal", 6, 100).to(DEVICE)
    before = wide.clone()
    draws = mixed_draws(torch.tensor([1, 2, 5]), 100, seed=5, device=DEVICE)
    tokens = draw_gpu(wide[:, :100], draws).cpu()
    assert torch.equal(tokens, draw_reference(wide[:, :100].cpu(), on_cpu(draws)))
    assert torch.equal(wide.nan_to_num(9), before.nan_to_num(9))
    with pytest.raises(ValueError, match="contiguous"):
        draw_gpu(wide.T[:100], draws)


@pytest.mark.parametrize(("keys", "winner"), CLOSE, ids=str)
def test_the_finest_noise_and_its_ties(keys: tuple[int, int], winner: int):
    draws = draws_of(torch.tensor([0]), 5000, seed=0, device=DEVICE)
    draws = draws._replace(keys=torch.tensor([keys], dtype=torch.int32, device=DEVICE))
    assert drawn(torch.zeros(1, 5000), draws).tolist() == [winner]


@pytest.mark.parametrize(
    "value", [math.nan, math.copysign(math.nan, -1), math.inf, -math.inf],
    ids=["nan", "-nan", "inf", "-inf"],
)  # fmt: skip
@pytest.mark.parametrize("where", ["one", "all"])
@pytest.mark.parametrize(
    "filters", [{}, {"top_p": 0.9}, {"top_k": 1}, {"top_k": 3, "top_p": 1e-46}], ids=str
)
def test_what_is_not_a_logit_still_gives_a_token(value: float, where: str, filters: dict[str, Any]):
    logits = logits_of("normal", 1, 50)
    logits[:, slice(9, 10) if where == "one" else slice(None)] = value
    draws = draws_of(torch.arange(1), 50, seed=6, device=DEVICE, **filters)
    tokens = drawn(logits, draws)
    assert tokens.min() >= 0 and tokens.max() < 50
    if where == "one" and value != math.inf:
        logits[:, 9] = -math.inf
        assert torch.equal(tokens, draw_reference(logits, on_cpu(draws)))


def test_draws_follow_the_softmax_of_what_is_kept():
    count = 40 if INTERPRETED else 20000
    logits = torch.tensor([2.0, 1.0, 1.0, 0.5, 0.0, -1.0, -3.0]).expand(count, -1)
    draws = draws_of(torch.arange(count), 7, 7, DEVICE, temperature=0.8, top_k=5, top_p=0.92)
    observed = drawn(logits, draws).bincount(minlength=7).double()
    expected = (logits[0, :5].double() / 0.8).softmax(0)
    kept = expected[:4] / expected[:4].sum()  # the first four hold 0.94, three 0.85
    assert observed[4:].sum() == 0
    assert ((observed[:4] - count * kept) ** 2 / (count * kept)).sum() < 21  # 3 degrees: 0.9999

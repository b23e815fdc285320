"""Experts of any kind that the library knows, with adapters: row by row as the sums are defined."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.integrations.moe import use_experts_implementation

from multilora.base_model.sites import LoRASite, Slice
from multilora.forward.experts import EXPERTS, adapt_parameters
from multilora.lora.linear import BatchLoRA
from multilora.lora.rank_pages import RankPagePool
from multilora_kernels.segments import LoRASegments
from support.engine.passes import CPU

COUNT, HIDDEN, INNER, ROWS, CHOSEN = 4, 12, 20, 9, 2
PAGES = ((2,), (0, 3))  # of two adapters
KINDS = [
    {"has_gate": gate, "has_bias": bias, "is_transposed": transposed, "has_post_expert_norm": norm}
    for gate, bias, transposed, norm in product((True, False), repeat=4)
]


def make_experts(kind: dict[str, bool]) -> Any:
    wide = 2 * INNER if kind["has_gate"] else INNER
    first = "gate_up_proj" if kind["has_gate"] else "up_proj"

    class Experts(nn.Module):
        def __init__(self, _: Any) -> None:
            super().__init__()
            self.num_experts = COUNT
            for name, inputs, outputs in ((first, HIDDEN, wide), ("down_proj", INNER, HIDDEN)):
                shape = (inputs, outputs) if kind["is_transposed"] else (outputs, inputs)
                setattr(self, name, nn.Parameter(torch.randn(COUNT, *shape) / 3))
                setattr(self, f"{name}_bias", nn.Parameter(torch.randn(COUNT, outputs)))
            self.act_fn = nn.SiLU()
            self.post_expert_norm = nn.LayerNorm(HIDDEN)

        def forward(self, *_: Any) -> torch.Tensor:
            raise AssertionError("the class's own function")

    decorate: Any = use_experts_implementation
    return decorate(**kind)(Experts)(
        SimpleNamespace(_experts_implementation=EXPERTS)
    ).requires_grad_(False)


def one_row(
    experts: Any, x: torch.Tensor, expert: int, deltas: dict[str, torch.Tensor]
) -> torch.Tensor:
    """`deltas` [COUNT, out, in] by parameter."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        weight = getattr(experts, name)[expert]
        weight = (weight.T if experts.is_transposed else weight) + deltas[name][expert]
        return weight @ x + (getattr(experts, f"{name}_bias")[expert] if experts.has_bias else 0)

    if experts.has_gate:
        gate, up = linear(x, "gate_up_proj").chunk(2)
        y = linear(nn.functional.silu(gate) * up, "down_proj")
    else:
        y = linear(nn.functional.silu(linear(x, "up_proj")), "down_proj")
    return experts.post_expert_norm(y) if experts.has_post_expert_norm else y


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: " ".join(k for k in kind if kind[k]))
def test_each_row_has_its_experts_and_its_adapter(kind: dict[str, bool]) -> None:
    torch.manual_seed(0)
    experts = make_experts(kind)
    first = "gate_up_proj" if kind["has_gate"] else "up_proj"
    wide = 2 * INNER if kind["has_gate"] else INNER
    sites = [
        LoRASite(name, 0, inputs, (Slice(name, outputs, True),), experts=COUNT)
        for name, inputs, outputs in ((first, HIDDEN, wide), ("down_proj", INNER, HIDDEN))
    ]
    pool = RankPagePool(sites, 4, torch.float32, CPU)
    pool.data.normal_(std=0.2)
    segments = LoRASegments.from_lists([0, 3], [3, 4], PAGES, ROWS, CPU)
    batch: list[BatchLoRA | None] = [BatchLoRA(pool, segments)]
    adapt_parameters(experts, sites, lambda: batch[0])
    x = torch.randn(ROWS, HIDDEN)
    index = torch.rand(ROWS, COUNT).argsort(dim=1)[:, :CHOSEN]
    weights = torch.rand(ROWS, CHOSEN)
    expected = torch.zeros(2, ROWS, HIDDEN)
    for row in range(ROWS):
        pages = PAGES[0] if row < 3 else PAGES[1] if row < 7 else ()
        for adapted, own in enumerate(((), pages)):
            deltas = {site.name: delta(pool, site, own) for site in sites}
            for expert, weight in zip(index[row].tolist(), weights[row], strict=True):
                expected[adapted, row] += weight * one_row(experts, x[row], expert, deltas)
    torch.testing.assert_close(experts(x, index, weights), expected[1], rtol=0, atol=1e-4)
    batch[0] = None
    torch.testing.assert_close(experts(x, index, weights), expected[0], rtol=0, atol=1e-4)
    assert ((expected[1] - expected[0]).abs().amax(1) > 0.01).tolist() == [True] * 7 + [False] * 2


def delta(pool: RankPagePool, site: LoRASite, pages: tuple[int, ...]) -> torch.Tensor:
    """[COUNT, out, in]"""
    a = pool.a[site.name].unflatten(0, (-1, COUNT))[list(pages), :, 0]
    b = pool.b[site.name].unflatten(0, (-1, COUNT))[list(pages)]
    return torch.einsum("pejo,peji->eoi", b, a)

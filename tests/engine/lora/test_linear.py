"""Linear on a CPU: y = x Wᵀ + bias + the update of the row's adapter, whatever form W has."""

import weakref
from dataclasses import dataclass

import pytest
import torch

from multilora.base_model.sites import LoRASite, Slice
from multilora.base_model.weights import DenseWeight
from multilora.lora.linear import BatchLoRA, Linear, SliceModule
from multilora.lora.rank_pages import RankPagePool
from multilora_kernels.segments import LoRASegments

SITE = LoRASite("layers.0.qkv", 0, 24, (Slice("q", 16), Slice("k", 8)), has_bias=True)
OTHER = LoRASite("layers.0.o", 0, 16, (Slice("o", 24),))
ROWS, STARTS, COUNTS, PAGES = 7, (0, 3), (3, 2), ((2, 0), (1,))  # rows 5 and 6 are base rows


@dataclass(frozen=True, eq=False)
class Halves:
    """A weight in another form: W as a sum of two, as if it had been packed."""

    one: torch.Tensor
    two: torch.Tensor
    bias: torch.Tensor

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.one.T + x @ self.two.T + self.bias

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        residual += self.multiply(x)


@pytest.fixture(name="pool")
def full_pool() -> RankPagePool:
    torch.manual_seed(0)
    pool = RankPagePool((SITE, OTHER), 3, torch.float32, "cpu")
    for tensor in (*pool.a.values(), *pool.b.values()):
        tensor.normal_(std=0.3)
    return pool


def batch_lora(pool: RankPagePool) -> BatchLoRA:
    segments = LoRASegments.from_lists(STARTS, COUNTS, PAGES, ROWS, "cpu")
    return BatchLoRA(pool, segments)


def updates(pool: RankPagePool, x: torch.Tensor) -> torch.Tensor:
    """By the definition, slice by slice and page by page."""
    y = torch.zeros(ROWS, SITE.out_features)
    a, b = pool.a[SITE.name], pool.b[SITE.name].split(SITE.slice_sizes, dim=-1)
    for start, count, pages in zip(STARTS, COUNTS, PAGES, strict=True):
        rows = slice(start, start + count)
        for page in pages:
            parts = [x[rows] @ a[page, i].T @ b[i][page] for i in range(len(SITE.slices))]
            y[rows] += torch.cat(parts, dim=1)
    return y


@pytest.mark.parametrize("form", ["dense", "halves"])
def test_rows_get_the_base_product_and_the_update_of_their_adapter(
    form: str, pool: RankPagePool
) -> None:
    w, bias, x = torch.randn(24, 24), torch.randn(24), torch.randn(ROWS, 24)
    weight = DenseWeight(w, bias) if form == "dense" else Halves(w - 1, torch.ones(24, 24), bias)
    linear = Linear(SITE, weight)
    base = x @ w.T + bias
    expected = base + updates(pool, x)
    assert (expected - base)[:5].abs().amin(dim=1).gt(0).all()

    projected = linear.project(x, batch_lora(pool))
    assert projected.delta is projected.update is None, "on a CPU nothing is left for the reader"
    torch.testing.assert_close(projected.y, expected)
    torch.testing.assert_close(linear.project(x, None).y, base)

    residual = torch.randn(ROWS, 24)
    before = residual.clone()
    assert linear.add_to(residual, x, batch_lora(pool)) is None
    torch.testing.assert_close(residual, before + expected)
    linear.add_to(residual, x, None)
    torch.testing.assert_close(residual, before + expected + base)


def test_slices_that_a_class_calls_one_by_one_are_computed_at_once(pool: RankPagePool) -> None:
    """And are not kept once the last one is taken: a pass has many layers."""
    w, bias, x = torch.randn(24, 24), torch.randn(24), torch.randn(ROWS, 24)
    products: list[torch.Size] = []

    class Counted(DenseWeight):
        def multiply(self, x: torch.Tensor) -> torch.Tensor:
            products.append(x.shape)
            return super().multiply(x)

    q, k = SliceModule.of(Linear(SITE, Counted(w, bias)), lambda: batch_lora(pool))
    assert (q.in_features, q.out_features, k.out_features) == (24, 16, 8)
    expected = x @ w.T + bias + updates(pool, x)
    for shape in ((ROWS,), (1, ROWS)):
        given = x.clone().view(*shape, 24)
        found = torch.cat((q(given), k(given)), dim=-1)
        torch.testing.assert_close(found, expected.view(*shape, 24))
        kept = weakref.ref(given)
        del given
        assert kept() is None
    assert products == [(ROWS, 24)] * 2


@pytest.mark.parametrize("bias", [None, torch.arange(4.0)], ids=["without bias", "with bias"])
def test_a_dense_weight_adds_its_product_without_room_for_it(bias: torch.Tensor | None) -> None:
    weight = DenseWeight(torch.randn(4, 6), bias)
    x, residual = torch.randn(3, 6), torch.randn(3, 4)
    expected, place = residual + weight.multiply(x), residual.data_ptr()
    weight.add_to(residual, x)
    torch.testing.assert_close(residual, expected)
    assert residual.data_ptr() == place

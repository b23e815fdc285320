"""The GPU kernel of QK norm, RoPE and KV write: on a GPU, or interpreted (see test_interpreter)."""

import pytest
import torch

from multilora_kernels.rope_kv_write import rope_kv_write, rope_kv_write_reference
from support.kernels.cases import DEVICE, DTYPES, INTERPRETED, assert_close, needs_gpu
from support.kernels.consumers import MIXES, RopeCase, consumer_case, fill_new_memory, rope_case

pytestmark = needs_gpu
EPS = 1e-5
HEADS = [((4, 2), 16), ((3, 1), 80), ((2, 2), 96), ((2, 1), 20)]
if not INTERPRETED:
    HEADS += [((32, 8), 128), ((32, 8), 64), ((8, 1), 256)]


def run(
    qkv: torch.Tensor, case: RopeCase, delta: torch.Tensor | None = None, keep_kv: bool = False
) -> torch.Tensor:
    heads, kv_heads = case.heads
    return rope_kv_write(
        qkv, case.rope, case.kv_slots, case.k_cache, case.v_cache, heads, kv_heads, case.qk_norm,
        EPS, delta, keep_kv,
    )  # fmt: skip


def check(q: torch.Tensor, case: RopeCase, exact: torch.Tensor, dtype: torch.dtype) -> None:
    """Against the reference; and the caches hold no more than the rows with a slot."""
    expected = rope_kv_write_reference(exact, case.rope, *case.heads, case.qk_norm, EPS)
    assert_close(q, expected[0], dtype)
    real = case.kv_slots >= 0
    slots = case.kv_slots[real]
    for cache, rows in ((case.k_cache, expected[1]), (case.v_cache, expected[2])):
        flat = cache.flatten(0, 1)
        assert_close(flat[slots], rows[real], dtype)
        others = torch.ones(len(flat), dtype=torch.bool, device=DEVICE)
        others[slots] = False
        assert flat[others].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("qk_norm", [False, True], ids=["", "norm"])
@pytest.mark.parametrize("rows", [1, 19])
@pytest.mark.parametrize(("heads", "head_dim"), HEADS)
def test_without_an_update(
    heads: tuple[int, int], head_dim: int, rows: int, qk_norm: bool, dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    fill_new_memory(monkeypatch)
    case = rope_case(rows, heads, head_dim, qk_norm, dtype, DEVICE)
    width = (heads[0] + 2 * heads[1]) * head_dim
    wide = torch.empty(rows, width + 16, dtype=dtype, device=DEVICE)
    qkv = wide[:, :width].copy_(torch.randn(rows, width))
    check(run(qkv, case), case, qkv, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("qk_norm", [False, True], ids=["", "norm"])
@pytest.mark.parametrize(("heads", "head_dim"), HEADS[::2] if INTERPRETED else HEADS)
@pytest.mark.parametrize("mix", ["skewed", "base only"])
def test_with_an_update(
    mix: str, heads: tuple[int, int], head_dim: int, qk_norm: bool,
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    fill_new_memory(monkeypatch)
    sizes = (heads[0] * head_dim, heads[1] * head_dim, heads[1] * head_dim)
    lora = consumer_case(MIXES[mix], sizes, dtype, DEVICE)
    case = rope_case(len(lora.y), heads, head_dim, qk_norm, dtype, DEVICE)
    check(run(lora.y, case, lora.delta), case, lora.exact, dtype)


@pytest.mark.parametrize("lora", [False, True], ids=["", "lora"])
def test_k_and_v_stay_beside_q(lora: bool):
    """Those of rows without a slot too; q keeps what was projected."""
    heads, head_dim, dtype = (4, 2), 16, DTYPES[0]
    own = consumer_case(MIXES["distinct"], (64, 32, 32), dtype, DEVICE)
    case = rope_case(len(own.y), heads, head_dim, True, dtype, DEVICE)
    delta, exact = (own.delta, own.exact) if lora else (None, own.y.double())
    before = own.y.clone()
    expected = rope_kv_write_reference(exact, case.rope, *heads, case.qk_norm, EPS)
    run(own.y, case, delta, keep_kv=True)
    q, k, v = own.y.unflatten(1, (-1, head_dim)).split((4, 2, 2), dim=1)
    assert_close(k, expected[1], dtype)
    assert_close(v, expected[2], dtype)
    assert torch.equal(q.flatten(1), before[:, :64])
    run(before, case, delta)
    assert not torch.equal(before, own.y), "only where it is asked for"


def test_no_rows():
    case = rope_case(0, (2, 1), 16, False, DTYPES[0], DEVICE)
    assert run(torch.empty(0, 64, dtype=DTYPES[0], device=DEVICE), case).shape == (0, 2, 16)

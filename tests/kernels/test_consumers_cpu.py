"""RMS norm, SwiGLU, and RoPE with KV write on a CPU, against their references."""

import pytest
import torch
import torch.nn.functional as F

from multilora_kernels.lora import LoRAUpdate
from multilora_kernels.rms_norm import rms_norm, rms_norm_reference
from multilora_kernels.rope_kv_write import rope_kv_write, rope_kv_write_reference
from multilora_kernels.segments import LoRASegments
from multilora_kernels.swiglu import swiglu, swiglu_reference
from support.kernels.cases import assert_close
from support.kernels.consumers import rope_case

DTYPES = [torch.float32, torch.bfloat16]
UPDATE = LoRAUpdate(
    torch.zeros(1, 16, 32), torch.zeros(1, 16, 64), (32, 32),
    LoRASegments.from_lists([0], [1], [[0]], 1, "cpu"),
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm(dtype: torch.dtype):
    x, weight = torch.randn(5, 3, 48).to(dtype)[:, 1], torch.randn(48).to(dtype)
    y = rms_norm(x, weight, 1e-2)
    assert_close(y, rms_norm_reference(x, weight, 1e-2), dtype)
    assert torch.equal(y, F.rms_norm(x, (48,), weight, 1e-2))
    right = x + 1
    assert torch.equal(rms_norm(x, weight, 1e-2, torch.ones_like(x)), rms_norm(right, weight, 1e-2))
    assert torch.equal(x, right)


def test_a_norm_with_a_weight_in_float32_is_rounded_once():
    x, weight = torch.randn(5, 48).bfloat16(), 1 + torch.randn(48) / 512
    assert torch.equal(rms_norm(x, weight, 1e-2), rms_norm(x.float(), weight, 1e-2).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swiglu(dtype: torch.dtype):
    gate_up = torch.randn(5, 66).to(dtype) * 4
    y = swiglu(gate_up)
    assert_close(y, swiglu_reference(gate_up), dtype)
    assert torch.equal(y, F.silu(gate_up[:, :33]) * gate_up[:, 33:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("qk_norm", [False, True], ids=["", "norm"])
@pytest.mark.parametrize("rows", [0, 3, 9], ids=["no rows", "no padding", "padding"])
def test_rope_kv_write(rows: int, qk_norm: bool, dtype: torch.dtype):
    case = rope_case(rows, (4, 2), 16, qk_norm, dtype, "cpu")
    qkv = torch.randn(rows, 8 * 16).to(dtype)
    q = rope_kv_write(
        qkv, case.rope, case.kv_slots, case.k_cache, case.v_cache, 4, 2, case.qk_norm, 1e-2
    )
    expected = rope_kv_write_reference(qkv, case.rope, 4, 2, case.qk_norm, 1e-2)
    assert_close(q, expected[0], dtype)
    real = case.kv_slots >= 0
    for cache, rows_of_head in ((case.k_cache, expected[1]), (case.v_cache, expected[2])):
        flat = cache.flatten(0, 1)
        assert_close(flat[case.kv_slots[real]], rows_of_head[real], dtype)
        assert int((~flat.isnan()).any(-1).any(-1).sum()) == int(real.sum())


def test_the_norm_has_a_weight_per_head_and_acts_before_rope():
    """By hand: one query head and one key head of two dimensions, a quarter turn."""
    qkv = torch.tensor([[3.0, 4.0, 6.0, 8.0, 1.0, 2.0]])
    rope = torch.tensor([[[0.0, 0.0], [-1.0, 1.0]]])
    norm = torch.tensor([[1.0, 1.0], [10.0, 100.0]])
    k_cache, v_cache = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    q = rope_kv_write(qkv, rope, torch.tensor([1]), k_cache, v_cache, 1, 1, norm, 0.0)
    size = 12.5**-0.5
    assert q.tolist() == [[pytest.approx([-4 * size, 3 * size])]]
    assert k_cache[0, :, 0].tolist() == [[0, 0], pytest.approx([-400 * size, 30 * size])]
    assert v_cache[0, :, 0].tolist() == [[0, 0], [1, 2]]
    exact = rope_kv_write_reference(qkv, rope, 1, 1, norm, 0.0)
    assert exact[1].tolist() == [[pytest.approx([-400 * size, 30 * size])]]


def test_a_pending_update_is_refused():
    """It would be lost."""
    case = rope_case(1, (2, 1), 16, False, torch.float32, "cpu")
    with pytest.raises(ValueError, match="pending update"):
        swiglu(torch.zeros(1, 64), update=UPDATE)
    with pytest.raises(ValueError, match="pending update"):
        swiglu(torch.zeros(1, 64), torch.zeros(1, 64))
    with pytest.raises(ValueError, match="pending update"):
        rope_kv_write(
            torch.zeros(1, 64), case.rope, case.kv_slots, case.k_cache, case.v_cache, 2, 1, None,
            0.0, torch.zeros(1, 64),
        )  # fmt: skip

"""The GPU kernels of paged attention and KV write: on a GPU, or interpreted."""

import pytest
import torch

from kernel_cases import DEVICE, DTYPES, INTERPRETED, assert_close, attention_case, needs_gpu
from multilora_kernels.kv_write import kv_write_gpu
from multilora_kernels.paged_attention import paged_attention_gpu, paged_attention_reference

pytestmark = needs_gpu
MIXED = [(1, 30), (7, 7), (1, 3), (20, 41)]
LENGTHS = {"decode": [(1, 1), (1, 16), (1, 90)], "mixed": MIXED}
SHAPES = [((4, 2), 32), ((3, 1), 80)]
if not INTERPRETED:
    LENGTHS |= {"long": [(300, 700), (1, 900), (129, 129)]}
    SHAPES += [((32, 8), 128), ((8, 8), 64), ((14, 2), 96), ((8, 1), 256)]


@pytest.mark.parametrize("window", [None, 6], ids=["full", "window"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "head_dim"), SHAPES)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=list(LENGTHS))
def test_attention(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    window: int | None,
):
    if INTERPRETED and dtype is torch.float16 and window:
        pytest.skip("the interpreter is slow; one dtype shows the window")
    case = attention_case(lengths, heads, head_dim, dtype=dtype, device=DEVICE)
    inputs = (case.q, case.k_cache, case.v_cache, case.cu_seqlens_q, case.context_lens,
              case.block_tables)  # fmt: skip
    scale = head_dim**-0.5
    out = paged_attention_gpu(*inputs, scale, case.max_seqlen_q, window)
    assert_close(out, paged_attention_reference(*inputs, scale, window), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kv_write(dtype: torch.dtype):
    k_cache = torch.zeros(3, 8, 3, 20, dtype=dtype, device=DEVICE)
    v_cache = torch.zeros_like(k_cache)
    fused = torch.randn(5, 6, 20, device=DEVICE).to(dtype)
    k, v = fused[:, :3], fused[:, 3:]
    slots = torch.tensor([17, -1, 0, 9, 23], device=DEVICE)
    kv_write_gpu(k, v, k_cache, v_cache, slots)
    for cache, rows in ((k_cache, k), (v_cache, v)):
        flat = cache.view(24, 3, 20)
        assert torch.equal(flat[[17, 0, 9, 23]], rows[[0, 2, 3, 4]])
        assert flat.count_nonzero() == rows[[0, 2, 3, 4]].count_nonzero()

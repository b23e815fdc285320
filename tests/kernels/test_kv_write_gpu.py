"""The GPU kernel of KV write: on a GPU, or interpreted (see test_interpreter)."""

import pytest
import torch

from multilora_kernels.kv_write import kv_write
from support.kernels.cases import DEVICE, DTYPES, INTERPRETED, needs_gpu
from support.kernels.kv_writes import check_kv_write

pytestmark = needs_gpu
SIZES = [(16, 16), (24, 40)] if INTERPRETED else [(16, 16), (24, 40), (128, 128), (192, 128)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head_dim", "value_dim"), SIZES)
def test_kv_write(head_dim: int, value_dim: int, dtype: torch.dtype) -> None:
    check_kv_write(kv_write, dtype, DEVICE, head_dim, value_dim)

"""The CPU path of KV write."""

import pytest
import torch

from multilora_kernels.kv_write import kv_write
from support.kernels.kv_writes import check_kv_write


@pytest.mark.parametrize(("head_dim", "value_dim"), [(16, 16), (24, 40)])
def test_kv_write(head_dim: int, value_dim: int) -> None:
    check_kv_write(kv_write, torch.bfloat16, "cpu", head_dim, value_dim)

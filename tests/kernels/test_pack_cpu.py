"""Packing on the CPU, by the definition."""

import itertools

import pytest
import torch

from multilora_kernels.pack import pack_cpu
from support.kernels.packing import PAGES, packed, parts_case

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize(("of_file", "of_pool"), [*itertools.product(DTYPES, DTYPES)], ids=str)
def test_pages_hold_the_parts_and_nothing_beside_them_changes(
    of_file: torch.dtype, of_pool: torch.dtype
) -> None:
    source, pool, parts, _ = parts_case(of_file, of_pool)
    expected = packed(source, pool, parts)
    pack_cpu(source, pool, parts, PAGES)
    assert torch.equal(pool, expected)

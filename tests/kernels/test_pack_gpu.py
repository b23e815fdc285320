"""The kernel that packs adapters into pages: on a GPU, or interpreted (see test_interpreter)."""

import itertools

import pytest
import torch

from multilora_kernels.pack import pack_cpu, pack_gpu
from support.kernels.cases import DEVICE, INTERPRETED, needs_gpu
from support.kernels.packing import PAGES, parts_case

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
pytestmark = needs_gpu


@pytest.mark.parametrize(("of_file", "of_pool"), [*itertools.product(DTYPES, DTYPES)], ids=str)
def test_parts_of_any_shape_land_where_the_cpu_puts_them(
    of_file: torch.dtype, of_pool: torch.dtype
) -> None:
    source, pool, parts, widest = parts_case(of_file, of_pool)
    expected = pool.clone()
    pack_cpu(source, expected, parts, PAGES)
    found = pool.to(DEVICE)
    pack_gpu(source.to(DEVICE), found, parts.to(DEVICE), widest, PAGES)
    # The interpreter rounds to bfloat16 towards zero.
    tolerance = 2**-7 if INTERPRETED and of_pool == torch.bfloat16 else 0
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=0)

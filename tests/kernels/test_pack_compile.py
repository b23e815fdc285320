"""The kernel that packs compiles ahead of time for every kind of GPU."""

import pytest
import torch

from multilora_kernels import pack
from support.kernels.aot import CAPABILITIES, compile_launch, record, stack_bytes, variant
from support.kernels.packing import parts_case

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("of_file", DTYPES, ids=str)
def test_pack(of_file: torch.dtype, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source, pool, parts, widest = parts_case(of_file, torch.bfloat16)
    launches = record(
        lambda: pack.pack_gpu(source, pool, parts, widest, (1, 16, 3)),
        {"pack_kernel": pack}, monkeypatch,
    )  # fmt: skip
    assert len({str(variant(launch)) for launch in launches}) == 1, "pages are no constants"
    assert stack_bytes(compile_launch(launches[0], capability)) == 0

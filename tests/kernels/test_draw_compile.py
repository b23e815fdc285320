"""The kernel that draws compiles ahead of time, and keeps its loops."""

import re

import pytest
import torch

from multilora_kernels import draw
from multilora_kernels.draw import draw_gpu
from support.kernels.aot import CAPABILITIES, compile_launch, record
from support.kernels.draws import draws_of


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("vocab_size", [128256, 151, 1])
def test_compiles(vocab_size: int, capability: int, monkeypatch: pytest.MonkeyPatch):
    logits, draws = torch.zeros(2, vocab_size), draws_of(torch.arange(2), vocab_size, seed=0)
    launches = record(lambda: draw_gpu(logits, draws), {"draw_kernel": draw}, monkeypatch)
    assert len(launches) == 1
    compiled = compile_launch(launches[0], capability)
    # The variables of the two bisections of top_k, and of the races of top_p: a name that the
    # compiler takes for another one's alias would not be carried from round to round.
    loops = re.findall(r"scf\.while \((.*?)\) :", compiled.asm["ttir"])
    assert [loop.count("=") for loop in loops] == [2, 3, 3]
    if vocab_size % 16 == 0:
        copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[.*?\], \[.*?\], (\w+)",
                            compiled.asm["ptx"])  # fmt: skip
        assert copies and set(copies) == {"0x10"}  # bytes

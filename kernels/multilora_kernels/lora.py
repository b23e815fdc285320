"""add_lora: what all adapters of a batch add to one fused projection, y += (x · A) · B.

Chooses by device: OpenAI Triton kernels on a GPU, dense or looped torch products on a CPU.
"""

import torch

from multilora_kernels.expand import expand_cpu, expand_gpu
from multilora_kernels.segments import LoRASegments
from multilora_kernels.shrink import shrink_cpu, shrink_gpu


def add_lora(
    y: torch.Tensor,
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    slice_sizes: tuple[int, ...],
    segments: LoRASegments,
) -> None:
    """y [T, out_total] += x [T, in] · a [pages, slices, 16, in] · b [pages, 16, out_total].

    All of one float dtype and on one device, rows contiguous; rows of no segment are not touched.
    `slice_sizes` (one to three, summing to out_total) says which columns belong to which slice.
    """
    if not segments.num_rows:
        return
    if x.is_cuda:
        expand_gpu(shrink_gpu(x, a, segments), b, slice_sizes, segments, y)
    else:
        expand_cpu(shrink_cpu(x, a, segments), b, slice_sizes, segments, y)

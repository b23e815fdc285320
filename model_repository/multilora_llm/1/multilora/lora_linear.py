"""A fused projection of the base model plus the low-rank updates of the batch's adapters."""

import torch
import torch.nn.functional as F

from multilora.adapter_pages import AdapterPages
from multilora_kernels.lora import add_lora
from multilora_kernels.segments import LoRASegments


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    layer: int,
    group: str,
    adapters: AdapterPages | None,
    segments: LoRASegments | None,
) -> torch.Tensor:
    """y = x Wᵀ + bias + Σ over the pages of the row's adapter (x Aᵀ) B; LoRA, arXiv:2106.09685.

    x [T, in], weight [out_total, in], bias [out_total] or None → y [T, out_total], all of the
    pool's dtype. `group` is a key of PROJECTION_GROUPS. Rows outside `segments` get no update;
    without adapters or segments nobody does.
    """
    y = F.linear(x, weight, bias)
    if adapters is not None and segments is not None:
        a, b = adapters.a[layer][group], adapters.b[layer][group]
        add_lora(y, x, a, b, adapters.slice_sizes[group], segments)
    return y

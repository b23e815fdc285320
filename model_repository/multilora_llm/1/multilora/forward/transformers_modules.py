"""Modules that stand where a class of the transformers library had its own, and compute the same
faster: RMS norms, in one kernel where theirs are five or six, and on a CPU the output head.

Norms are known by what they compute, tried on random numbers, since each class brings its own.
"""

import copy
import inspect

import torch
from torch import nn
from transformers import PreTrainedModel

from multilora.base_model.weights import DenseWeight, SiteWeight, packed
from multilora_kernels.rms_norm import rms_norm

_OFFSETS = (0.0, 1.0)  # what classes add to the weight: Gemma's is kept as its difference from 1
_MAGNITUDES = (1.0, 1e-3, 30.0)  # of the rows that are tried: eps counts in the second
_TOLERANCE = 1e-5


class NormModule(nn.Module):
    """x [.., H] → x / sqrt(mean of squares + eps) · (weight + offset), in the dtype of x."""

    def __init__(self, weight: torch.Tensor, offset: float, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self._factors = weight.float() + offset if offset else weight
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if rows.stride(-1) != 1:
            rows = rows.contiguous()
        return rms_norm(rows, self._factors, self._eps).view(x.shape)


class HeadModule(nn.Module):
    """x [.., hidden] → logits [.., vocab], with a weight that is packed."""

    def __init__(self, head: nn.Linear, weight: SiteWeight) -> None:
        super().__init__()
        self.weight = head.weight.data.to("meta")  # a class may look at its dtype
        self._weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._weight.multiply(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


def use_own_modules(model: PreTrainedModel) -> None:
    """Put them into a model that has its weights."""
    found: dict[tuple[type, float], float | None] = {}
    for name, module in list(model.named_modules()):
        if (eps := _eps(module)) is None:
            continue
        kind = (type(module), eps)
        if kind not in found:
            found[kind] = _offset(module, eps)
        if (offset := found[kind]) is not None:
            assert isinstance(module.weight, torch.Tensor)
            model.set_submodule(name, NormModule(module.weight.data, offset, eps))
    _pack_head(model)


def _eps(module: nn.Module) -> float | None:
    """None for what is no RMS norm with one weight and nothing else."""
    if not type(module).__name__.endswith("RMSNorm"):
        return None
    held = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    inputs = inspect.signature(module.forward).parameters
    numbers = [n for name, n in vars(module).items() if "eps" in name and isinstance(n, float)]
    fits = held == ["weight"] and len(inputs) == 1 and len(numbers) == 1
    return numbers[0] if fits else None


@torch.no_grad()
def _offset(module: nn.Module, eps: float) -> float | None:
    """That with which NormModule computes the same; None: with none."""
    tried = copy.deepcopy(module).to("cpu", torch.float32)
    assert isinstance(tried.weight, torch.Tensor)
    noise = torch.Generator().manual_seed(0)
    tried.weight.copy_(torch.randn(tried.weight.shape, generator=noise))
    rows = torch.randn(len(_MAGNITUDES), len(tried.weight), generator=noise)
    rows *= torch.tensor(_MAGNITUDES)[:, None]
    try:
        expected = tried(rows)
    except Exception:  # its forward needs what a norm alone has not
        return None
    for offset in _OFFSETS:
        y = NormModule(tried.weight.data, offset, eps)(rows)
        if y.shape == expected.shape and torch.allclose(y, expected, _TOLERANCE, _TOLERANCE):
            return offset
    return None


def _pack_head(model: PreTrainedModel) -> None:
    """As the native decoder's; one that is tied then has a copy."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return
    bias = None if head.bias is None else head.bias.data
    weight = packed(DenseWeight(head.weight.data, bias))
    if not isinstance(weight, DenseWeight):
        name = next(name for name, module in model.named_modules() if module is head)
        model.set_submodule(name, HeadModule(head, weight))

"""A base model and adapters of random numbers, made on the device."""

import torch

from multilora.adapters.checkpoint.adapter import Adapter
from multilora.base_model.config import PROJECTION_GROUPS, BaseConfig
from multilora.base_model.weights import LayerWeights, Weights
from multilora.lora.adapter_pages import AdapterPages
from multilora.lora.rank_pages import PageTensors

_RANK = 16


def random_weights(base: BaseConfig, dtype: torch.dtype, device: torch.device) -> Weights:
    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, dtype=dtype, device=device).div_(columns**0.5)

    def group(name: str) -> torch.Tensor:
        return matrix(sum(base.slice_sizes(name)), base.group_in(name))

    def ones() -> torch.Tensor:
        return torch.ones(base.hidden_size, dtype=dtype, device=device)

    def layer() -> LayerWeights:
        return LayerWeights(
            input_norm=ones(),
            qkv=group("qkv"),
            qkv_bias=None,
            qk_norm=None,
            o=group("o"),
            o_bias=None,
            post_norm=ones(),
            gate_up=group("gate_up"),
            gate_up_bias=None,
            down=group("down"),
            down_bias=None,
        )

    torch.manual_seed(0)
    return Weights(
        embed=matrix(base.vocab_size, base.hidden_size),
        layers=tuple(layer() for _ in range(base.num_layers)),
        norm=ones(),
        lm_head=matrix(base.vocab_size, base.hidden_size),
    )


def weights_bytes(weights: Weights) -> int:
    layers = [vars(layer).values() for layer in weights.layers]
    tensors = [weights.embed, weights.norm, weights.lm_head, *(t for own in layers for t in own)]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def random_pages(
    base: BaseConfig, num_pages: int, dtype: torch.dtype, device: torch.device
) -> AdapterPages:
    """A pool full of small random numbers; page i is adapter i, of rank 16."""
    pages = AdapterPages(base, num_pages, dtype, device)
    for a, b in zip(pages.a, pages.b, strict=True):
        for group in PROJECTION_GROUPS:
            a[group].normal_(std=base.group_in(group) ** -0.5)
            b[group].normal_(std=0.02)
    return pages


def random_adapter(base: BaseConfig, dtype: torch.dtype) -> Adapter:
    """One page in host memory, as the loader hands it to the pool."""
    tensors = PageTensors.zeros(base, 1, dtype, "cpu")
    tensors.data.fill_(0.01)
    modules = tuple(name for names in PROJECTION_GROUPS.values() for name in names)
    return Adapter("random", "0" * 64, _RANK, 1, tensors.data.nbytes, modules, tensors)

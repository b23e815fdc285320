"""A base model and adapters of random numbers, made on the device."""

import torch

from multilora.base_model.config import NativeConfig
from multilora.base_model.weights import DenseWeight, LayerNorms, Weights
from multilora.lora.rank_pages import HostWeights, PackPlan, RankPagePool, tidied
from multilora_kernels.segments import PAGE_RANK


def random_weights(base: NativeConfig, dtype: torch.dtype, device: torch.device) -> Weights:
    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, dtype=dtype, device=device).div_(columns**0.5)

    def ones() -> torch.Tensor:
        return torch.ones(base.hidden_size, dtype=dtype, device=device)

    torch.manual_seed(0)
    return Weights(
        embed=matrix(base.vocab_size, base.hidden_size),
        sites={
            site.name: DenseWeight(matrix(site.out_features, site.in_features), bias=None)
            for site in base.sites
        },
        norms=tuple(LayerNorms(ones(), ones(), qk=None) for _ in range(base.num_layers)),
        norm=ones(),
        lm_head=matrix(base.vocab_size, base.hidden_size),
    )


def weights_bytes(weights: Weights) -> int:
    tensors = [weights.embed, weights.norm, weights.lm_head]
    for part in (*weights.sites.values(), *weights.norms):
        tensors += [tensor for tensor in vars(part).values() if tensor is not None]
    return sum(tensor.nbytes for tensor in tensors)


def random_pages(
    base: NativeConfig, num_pages: int, dtype: torch.dtype, device: torch.device
) -> RankPagePool:
    """A pool full of small random numbers; page i is adapter i, of rank 16."""
    pages = RankPagePool(base.sites, num_pages, dtype, device)
    for site in base.sites:
        pages.a[site.name].normal_(std=site.in_features**-0.5)
        pages.b[site.name].normal_(std=0.02)
    return pages


def one_page(base: NativeConfig, dtype: torch.dtype) -> HostWeights:
    """An adapter of rank 16 in host memory, as the loader hands it to the pool."""
    data, factors = tidied(
        {
            part.module: (
                torch.full((PAGE_RANK, site.in_features), 0.01, dtype=dtype),
                torch.full((part.out_features, PAGE_RANK), 0.01, dtype=dtype),
                1.0,
            )
            for site in base.sites
            for part in site.slices
        }
    )
    return HostWeights(data, PackPlan(factors, data, base.sites))

"""Rows to draw from: every filter, alone and together, and what logits can look like."""

import itertools

import torch

from multilora_kernels.draws import Draws

TEMPERATURES = (1e-6, 0.3, 1.0, 100.0)
MIN_PS = (0.0, 0.0, 0.02, 1.0)
TOP_PS = (1.0, 0.9, 0.5, 1e-6, 0.99999)
TOP_KS = (0, 1, 3, 40, 1 << 20)


def draws_of(
    rows: torch.Tensor, vocab_size: int, seed: int, device: str = "cpu", **fixed: float
) -> Draws:
    """One draw per entry of `rows`. Filters not `fixed` are off; the temperature is 1."""
    count = len(rows)
    filters = {"temperature": 1.0, "min_p": 0.0, "top_p": 1.0, "top_k": 0} | fixed
    columns = [torch.full((count, 1), float(value)) for value in filters.values()]
    return _draws(rows, columns, vocab_size, seed, device)


def mixed_draws(rows: torch.Tensor, vocab_size: int, seed: int, device: str = "cpu") -> Draws:
    """A random sample of all combinations of filters."""
    noise = torch.Generator().manual_seed(seed)
    every = torch.tensor(list(itertools.product(TEMPERATURES, MIN_PS, TOP_PS, TOP_KS)))
    chosen = every[torch.randperm(len(every), generator=noise)[: len(rows)]]
    return _draws(rows, list(chosen.split(1, dim=1)), vocab_size, seed, device)


def _draws(
    rows: torch.Tensor, columns: list[torch.Tensor], vocab_size: int, seed: int, device: str
) -> Draws:
    noise = torch.Generator().manual_seed(seed)
    keys = torch.randint(-(2**31), 2**31, (len(rows), 2), generator=noise).to(torch.int32)
    temperature, min_p, top_p, top_k = (column.contiguous() for column in columns)
    top_k = top_k.long().clamp(max=vocab_size)
    tensors = (rows, temperature, min_p, top_p, top_k, keys)
    candidates = max(int(top_k.max()), 8)  # few, so that rows beyond them are met
    return Draws._make([*(tensor.to(device) for tensor in tensors), candidates, True])


def logits_of(kind: str, rows: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3
    if kind == "flat":  # any race may be lost many times
        return x * 0.01
    if kind == "ties":  # as of a bfloat16 product: most values are met more than once
        return (x * 4).round() / 4
    if kind == "equal":
        return torch.full_like(x, -7.25)
    if kind == "suppressed":
        return x.masked_fill(x < 2, -torch.inf).index_fill(1, torch.tensor([vocab_size // 2]), 1.5)
    if kind == "one left":
        return torch.full_like(x, -torch.inf).index_fill(1, torch.tensor([vocab_size - 1]), -3e4)
    return x


KINDS = ("normal", "flat", "ties", "equal", "suppressed", "one left")

# Two tokens of [0, 5000), the smaller first, whose u_t is the smallest one there is, by these keys.
TIED = ((694, 3779, (209151904, 1725790100)), (2873, 4578, (1314457054, 2134974445)))

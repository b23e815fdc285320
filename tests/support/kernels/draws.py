"""Rows to draw from: every filter, alone and together, and what logits can look like."""

import itertools

import torch

from multilora_kernels.draw_cpu import draw_cpu
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


def edge_cases(device: str) -> tuple[torch.Tensor, Draws]:
    """Rows whose race one token wins if the filters let it in, and that is at their edge.

    All tokens are nearly as likely. The two of ranks 0 and 1, of ranks 2 and 3 ... are 4096 tokens
    apart, so that of the best tokens half are not the best ones of their lanes.
    """
    vocab_size = 8200
    filters = [
        (kept, own)
        for kept in (3, 300)
        for own in (
            {"top_k": kept}, {"top_p": (kept - 0.5) / vocab_size},
            {"top_k": 2 * kept, "top_p": 0.5 - 0.25 / kept},
        )
    ]  # fmt: skip
    cases = list(itertools.product(filters, (1, 3), (-1, 0, 1, 2)))
    parts = [
        draws_of(torch.tensor([row]), vocab_size, row, "cpu", **own)
        for row, ((_, own), *_) in enumerate(cases)
    ]
    tensors = [torch.cat(column) for column in list(zip(*parts, strict=True))[:6]]
    draws = Draws._make([*tensors, 8, True])
    free = draws._replace(top_k=draws.top_k * 0, top_p=torch.ones_like(draws.top_p))
    favourites = draw_cpu(torch.zeros(len(cases), vocab_size), free).tolist()
    low = torch.arange(4096)
    by_rank = torch.cat([torch.stack([low, low + 4096], 1).flatten(), torch.arange(8192, 8200)])
    logits = torch.empty(len(cases), vocab_size)
    for row, ((kept, _), ties, offset) in enumerate(cases):
        order, rank = by_rank.clone(), kept + offset
        order[by_rank == favourites[row]] = order[rank]
        order[rank] = favourites[row]
        logits[row, order] = torch.arange(vocab_size) // ties * -1e-8
    return logits, draws._replace(**{n: getattr(draws, n).to(device) for n in draws._fields[:6]})


# Keys, and who wins among 5000 equals: of two tokens with the smallest u_t there is, the lower one
# (694, 3779; 2873, 4578); or the higher one, whose u_t is the smallest, while the next larger u_t
# is the other one's (944, 1674; 792, 4189), which 1 - u_t cannot tell from it.
CLOSE = (
    ((209151904, 1725790100), 694), ((1314457054, 2134974445), 2873),
    ((957281304, -663606900), 1674), ((136051110, 1737476127), 4189),
)  # fmt: skip

"""The CPU path of draw: the same semantics with the sorting and the tensors of torch."""

import torch

from multilora_kernels.draws import Draws

_CHUNK = 1 << 18  # numbers drawn at once: they should stay in the cache


def draw_cpu(logits: torch.Tensor, draws: Draws) -> torch.Tensor:
    """As draw."""
    rows = logits[draws.rows]
    scaled = (rows - rows.amax(dim=-1, keepdim=True)) / draws.temperature
    scaled.masked_fill_(scaled < _threshold(scaled, draws), -torch.inf)
    tokens = _mix(torch.arange(scaled.shape[1], dtype=torch.int32))
    step = max(1, _CHUNK // scaled.shape[1])
    parts = zip(scaled.split(step), draws.keys.split(step), strict=True)
    return torch.cat([_race_cpu(part, keys, tokens) for part, keys in parts])


def _threshold(scaled: torch.Tensor, draws: Draws) -> torch.Tensor:
    """The smallest value that min_p, top_k and top_p all keep, float32 [D, 1]; the maximum is 0."""
    floor = draws.min_p.log()
    if not draws.candidates:
        return floor
    vocab_size = scaled.shape[1]
    values = scaled.topk(min(draws.candidates, vocab_size), dim=-1).values
    kth = values.gather(1, (draws.top_k - 1).clamp(min=0))
    floor = torch.where(draws.top_k > 0, floor.maximum(kth), floor)
    if not draws.has_top_p:
        return floor
    total = scaled.masked_fill(scaled < floor, -torch.inf).logsumexp(dim=-1, keepdim=True)
    mass = _mass(values, floor, total)
    reached = (mass[:, -1:] >= draws.top_p) | (values[:, -1:] < floor) | (draws.top_p >= 1)
    if values.shape[1] < vocab_size and not reached.all():
        values = scaled.sort(dim=-1, descending=True).values
        mass = _mass(values, floor, total)
    # Token i stays while those before it have less than top_p together.
    last = (mass[:, :-1] < draws.top_p).sum(dim=-1, keepdim=True)
    return torch.where(draws.top_p < 1, floor.maximum(values.gather(1, last)), floor)


def _mass(values: torch.Tensor, floor: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    return (values - total).exp().masked_fill(values < floor, 0).cumsum(dim=-1)


def _race_cpu(scaled: torch.Tensor, keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """argmax of scaled_t - ln(E_t), int64 [D]; `tokens` int32 [V] hashed."""
    noise = _mix(tokens ^ keys[:, :1], keys[:, 1:])
    uniform = ((noise & 0x7FFFFFFF).float() + 0.5) * 2.0**-31
    return (scaled - (-torch.log1p(-uniform.clamp(max=1 - 2.0**-24))).log()).argmax(dim=-1)


def _mix(x: torch.Tensor, key: torch.Tensor | int = 0) -> torch.Tensor:
    """_hash on int32: products wrap around, and masks make the shifts to the right logical."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * -0x7A143595 + key
    x = (x ^ ((x >> 13) & 0x7FFFF)) * -0x3D4D51CB
    return x ^ ((x >> 16) & 0xFFFF)

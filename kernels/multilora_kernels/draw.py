"""Draw one token per row from what min_p, top_k and top_p leave of its softmax.

    s_t = (x_t - max x) / temperature,  p_t = exp(s_t)
    kept = {t : s_t >= ln(min_p)}, of these the top_k largest, of these the fewest largest that
           hold top_p of their mass; always with all ties of the last one
    token = argmax over kept of s_t - ln(E_t),  E_t = -ln(1 - u_t) ~ Exp(1)

Logits fp32 [N, V], rows contiguous, finite or -inf with one finite at least; whatever else a row
holds, it gets some token of [0, V). u_t hashes (keys of the row, t). Ties: the lowest token.

No sorting on a GPU, as every filter keeps what lies above some value. A race among too many
tokens is as good as one among the kept, if its winner is kept. So top_p needs no threshold: race;
where too much mass lies above the winner, race again among what lies above; with top_p the
probability, one race is mostly enough (FlashInfer's rejection sampling, arXiv 2501.01005; it draws
afresh, which would tie the outcome to the number of rounds). The race that follows measures the
mass too, so a round costs one pass over the row. top_k needs its threshold (top_p renormalises):
the k-th largest of the maxima of 4096 lanes, out of registers, is it or just below it; a bisection
that snaps to values settles it, mostly by one pass.

One program per row, whose registers leave a multiprocessor no room for a second; a row (513 KB at
V = 128 k) is read 2 times for a temperature alone, 3 with top_p or top_k, 4 with both, plus rare
further rounds. Floor: one read, D · V · 4 bytes: 39 us for 256 rows of 128 k at 3.35 TB/s. The
first race evaluates some 60 instructions per token: 70 us for these rows on 132 multiprocessors at
1.7 GHz, 35 us for a single row on its one. Blocks of tokens without a candidate are skipped.
"""

import torch

from multilora_kernels.draw_cpu import draw_cpu
from multilora_kernels.draws import Draws
from multilora_kernels.openai_triton import tl, triton, uses_kernels

_BLOCK = 4096
_MASK = (1 << 32) - 1
_INFINITE = tl.constexpr(0x7F800000)  # the bits of infinity


def draw(logits: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Token ids int64 [D]. No synchronisation on a GPU."""
    return draw_gpu(logits, draws) if uses_kernels(logits) else draw_cpu(logits, draws)


@triton.jit
def _to_distances(x, top, temperature):
    """-s_t as the bits of a float of 0 or more, which order as it does; NaN becomes infinite."""
    distances = (top - x) / temperature
    return tl.where(distances >= 0, distances, float("inf")).to(tl.int32, bitcast=True)


@triton.jit
def _distances(row_ptr, tokens, vocab_size, top, temperature):
    x = tl.load(row_ptr + tokens, mask=tokens < vocab_size, other=-float("inf"))
    return _to_distances(x, top, temperature)


@triton.jit
def _hash(x, key):
    """The finaliser of MurmurHash3 on uint32, `key` added half way."""
    x = tl.mul(x ^ (x >> 16), 0x85EBCA6B, sanitize_overflow=False)
    x = tl.add(x, key, sanitize_overflow=False)
    x = tl.mul(x ^ (x >> 13), 0xC2B2AE35, sanitize_overflow=False)
    return x ^ (x >> 16)


@triton.jit
def _uniform(tokens, key0, key1):
    """u_t: 31 bits → (0, 1). The fine end near 0 becomes the small E_t, which decide the race."""
    noise = _hash(_hash(tokens.to(tl.uint32), 0) ^ key0, key1)
    u = ((noise & 0x7FFFFFFF).to(tl.int32).to(tl.float32) + 0.5) * (0.5**31)
    return tl.minimum(u, 1 - 0.5**24)


@triton.jit
def _exponential(u):
    """-ln(1 - u): by its series where 1 - u would lose digits of u; next term: u**9 / 9 < 2e-12."""
    series = u * (1 / 8) + 1 / 7
    series = series * u + 1 / 6
    series = series * u + 1 / 5
    series = series * u + 1 / 4
    series = series * u + 1 / 3
    series = series * u + 1 / 2
    return tl.where(u < 0.0625, series * u * u + u, -tl.log(1 - u))


@triton.jit
def _race(row_ptr, vocab_size, top, temperature, ceiling, key0, key1, BLOCK: tl.constexpr):
    """The winner among the tokens at distances up to `ceiling`, and their mass."""
    best, winner = 0.0, 0
    mass = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, vocab_size, BLOCK, num_stages=3):
        tokens = start + tl.arange(0, BLOCK)
        distances = _distances(row_ptr, tokens, vocab_size, top, temperature)
        inside = distances <= ceiling
        if tl.max(inside.to(tl.int32)) > 0:
            p = tl.where(inside, tl.exp(-distances.to(tl.float32, bitcast=True)), 0.0)
            u = _uniform(tokens, key0, key1)
            mass += p
            # E_t >= u_t: most blocks hold nothing that could win, and need no logarithms.
            if tl.max((p > best * u * 0.9999).to(tl.int32)) > 0:
                scores = p / _exponential(u)
                score = tl.max(scores)
                token = tl.min(tl.where(scores == score, tokens, vocab_size))
                winner = tl.where(score > best, token, winner)
                best = tl.maximum(score, best)
    return winner, tl.sum(mass)


@triton.jit
def _kth(row_ptr, vocab_size, top, temperature, nearest, k, BLOCK: tl.constexpr):
    """The k-th smallest distance, k < vocab_size. `nearest`: the smallest one of each lane."""
    low, high = 0, _INFINITE
    while low < high:
        middle = low + ((high - low) >> 1)
        if tl.sum((nearest <= middle).to(tl.int32)) >= k:
            high = middle
        else:
            low = middle + 1
    low = 0
    pivot = high - 1  # the lanes' answer is mostly right, which this shows at once
    while low < high:
        counts = tl.zeros((BLOCK,), tl.int32)
        below = tl.zeros((BLOCK,), tl.int32)
        above = tl.full((BLOCK,), _INFINITE, tl.int32)
        for start in tl.range(0, vocab_size, BLOCK, num_stages=3):
            tokens = start + tl.arange(0, BLOCK)
            distances = _distances(row_ptr, tokens, vocab_size, top, temperature)
            inside = distances <= pivot
            counts += inside.to(tl.int32)
            below = tl.maximum(below, tl.where(inside, distances, 0))
            above = tl.minimum(above, tl.where(inside, _INFINITE, distances))
        if tl.sum(counts) >= k:
            high = tl.max(below)
        else:
            low = tl.min(above)
        pivot = low + ((high - low) >> 1)
    return high


@triton.jit
def draw_kernel(
    logits_ptr, rows_ptr, temperature_ptr, min_p_ptr, top_p_ptr, top_k_ptr, keys_ptr, out_ptr,
    row_stride, vocab_size, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (D,)."""
    index = tl.program_id(0)
    row_ptr = logits_ptr + tl.load(rows_ptr + index) * row_stride
    temperature = tl.load(temperature_ptr + index)
    top_p = tl.load(top_p_ptr + index)
    top_k = tl.load(top_k_ptr + index)
    key0 = tl.load(keys_ptr + index * 2).to(tl.uint32)
    key1 = tl.load(keys_ptr + index * 2 + 1).to(tl.uint32)
    highest = tl.full((BLOCK,), -float("inf"), tl.float32)
    for start in tl.range(0, vocab_size, BLOCK, num_stages=3):
        tokens = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + tokens, mask=tokens < vocab_size, other=-float("inf"))
        highest = tl.maximum(highest, x)
    top = tl.max(highest)
    ceiling = tl.maximum(-tl.log(tl.load(min_p_ptr + index)), 0.0).to(tl.int32, bitcast=True)
    ceiling = tl.minimum(ceiling, _INFINITE - 1)
    if (top_k > 0) & (top_k < vocab_size):
        nearest = _to_distances(highest, top, temperature)
        kth = _kth(row_ptr, vocab_size, top, temperature, nearest, top_k, BLOCK)
        ceiling = tl.minimum(ceiling, kth)
    token, total = _race(row_ptr, vocab_size, top, temperature, ceiling, key0, key1, BLOCK)
    if top_p < 1:
        # Not `nearer = token` first: the compiler would take `token = nearer` for no change.
        ceiling = _distances(row_ptr, token, vocab_size, top, temperature) - 1
        nearer, mass = _race(row_ptr, vocab_size, top, temperature, ceiling, key0, key1, BLOCK)
        while (mass > 0) & (mass >= top_p * total):
            token = nearer
            ceiling = _distances(row_ptr, token, vocab_size, top, temperature) - 1
            nearer, mass = _race(row_ptr, vocab_size, top, temperature, ceiling, key0, key1, BLOCK)
    tl.store(out_ptr + index, token)


def draw_gpu(logits: torch.Tensor, draws: Draws) -> torch.Tensor:
    """As draw."""
    if logits.stride(1) != 1:
        raise ValueError("a row of logits must be contiguous")
    out = torch.empty(len(draws.rows), dtype=torch.int64, device=logits.device)
    draw_kernel[(len(draws.rows),)](
        logits, draws.rows, draws.temperature, draws.min_p, draws.top_p, draws.top_k, draws.keys,
        out, logits.stride(0), logits.shape[1], BLOCK=_BLOCK, num_warps=32,
    )  # fmt: skip
    return out


def draw_reference(logits: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Token ids int64 [D], in float64 on the CPU."""
    tensors = (logits[draws.rows], draws.temperature, draws.min_p, draws.top_p, draws.keys)
    picked: list[torch.Tensor] = []
    for index, top_k in enumerate(draws.top_k.flatten().tolist()):
        row, temperature, min_p, top_p, keys = (tensor[index].cpu() for tensor in tensors)
        s = (row.double() - row.max()) / temperature
        s = s.where(s >= min_p.double().log(), -torch.inf)
        if 0 < top_k < len(s):
            s = s.where(s >= s.topk(top_k).values[-1], -torch.inf)
        if top_p < 1:
            values, order = s.sort()
            mass = values.softmax(0).cumsum(0)[torch.searchsorted(values, values, right=True) - 1]
            above = (1 - mass).where(values < 0, -1)  # the largest stays in any case
            s[order[above >= top_p]] = -torch.inf
        noise = _hash_reference(torch.arange(len(s)), 0) ^ (int(keys[0]) & _MASK)
        u = ((_hash_reference(noise, int(keys[1])) & 0x7FFFFFFF) + 0.5) * 2.0**-31
        picked.append((s - (-torch.log1p(-u.double().clamp(max=1 - 2.0**-24))).log()).argmax())
    return torch.stack(picked)


def _hash_reference(x: torch.Tensor, key: int) -> torch.Tensor:
    """_hash on int64 of 32 bits each."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B + key) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)

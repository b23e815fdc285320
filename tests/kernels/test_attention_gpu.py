"""The GPU kernels of paged attention: on a GPU, or interpreted.

Slots and blocks that no sequence uses are NaN (see attention_case), and so is here what was never
written.
"""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from multilora_kernels.paged_attention import paged_attention, paged_attention_reference
from multilora_kernels.paged_decode import MAX_SPLITS, decode_gpu, decode_work
from multilora_kernels.paged_prefill import prefill_gpu
from multilora_kernels.paged_tile import Scores
from multilora_kernels.unpaged_prefill import unpaged_prefill_gpu
from support.kernels.cases import (
    DEVICE,
    DTYPES,
    INTERPRETED,
    AttentionCase,
    assert_close,
    attention_case,
    needs_gpu,
    random_sinks,
)

pytestmark = needs_gpu
DTYPE = DTYPES[0]
HALF = torch.float16
T = torch.Tensor
Inputs = tuple[T, T, T, T, T, T]
LENGTHS = {  # (new, context) tokens of each sequence
    "decode": [(1, 1), (1, 16), (1, 90)],
    "mixed": [(1, 30), (7, 7), (1, 3), (0, 9), (20, 41)],
}
SHAPES = [((4, 2), 32), ((3, 1), 80)]
# Around blocks of 64 tokens and splits of 128, of the whole context or of a window; 0 is padding.
CONTEXTS = [1, 64, 65, 128, 0, 129, 300, 512, 513]
if not INTERPRETED:
    LENGTHS |= {"long": [(300, 700), (1, 900), (129, 129), (1, 5000)]}
    SHAPES += [((32, 8), 128), ((8, 8), 64), ((14, 2), 96), ((8, 1), 256)]
    CONTEXTS += [4096, 4097, 20000]


@pytest.fixture(autouse=True)
def fresh_memory_is_nan(monkeypatch: pytest.MonkeyPatch):
    empty = torch.empty

    def nan(*size: object, **keywords: object) -> torch.Tensor:
        made = empty(*size, **keywords)  # pyright: ignore[reportCallIssue, reportArgumentType]
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", nan)


def inputs(case: AttentionCase) -> Inputs:
    return (case.q, case.k_cache, case.v_cache, case.cu_seqlens_q, case.context_lens,
            case.block_tables)  # fmt: skip


def decode(
    case: AttentionCase,
    window: int | None = None,
    programs: int | None = None,
    out: torch.Tensor | None = None,
    passes: int = 1,
) -> torch.Tensor:
    """About `programs` in all; `passes`: layers that share the work."""
    out = torch.empty_like(case.q).fill_(float("nan")) if out is None else out
    q, k_cache, v_cache, cu_seqlens, contexts, tables = inputs(case)
    work = decode_work(q, k_cache.shape[2], cu_seqlens, contexts, window, programs)
    for _ in range(passes):
        decode_gpu(q, k_cache, v_cache, cu_seqlens, tables, out, Scores(0.3), work)
    return out


def prefill(
    case: AttentionCase,
    window: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    out = torch.empty_like(case.q).fill_(float("nan")) if out is None else out
    caches = (case.k_cache, case.v_cache)
    prefill_gpu(case.q, *caches, case.tiles(), case.block_tables, out, Scores(0.3), window)
    return out


def unpaged_prefill(case: AttentionCase) -> torch.Tensor:
    out = torch.empty_like(case.q).fill_(float("nan"))
    unpaged_prefill_gpu(case.q, case.k, case.v, case.tiles(), case.cu_seqlens_q, out, 0.3)
    return out


def check(out: torch.Tensor, case: AttentionCase, window: int | None = None) -> None:
    assert_close(out, paged_attention_reference(*inputs(case), 0.3, window), case.q.dtype)


@pytest.mark.parametrize("window", [None, 6], ids=["full", "window"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "head_dim"), SHAPES)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=list(LENGTHS))
def test_attention(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    window: int | None,
):
    case = attention_case(lengths, heads, head_dim, dtype=dtype, device=DEVICE)
    out = paged_attention(
        *inputs(case), scale=0.3, sliding_window=window, tiles=case.tiles(),
    )  # fmt: skip
    check(out, case, window)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("value_dim", [16, 24])
@pytest.mark.parametrize(("softcap", "sinks"), [(0.8, False), (None, True), (2.0, True)])
def test_soft_caps_sinks_and_values_of_another_size(
    softcap: float | None, sinks: bool, value_dim: int, window: int | None
):
    """Decode in one split and in several, prompts, padding."""
    lengths = [(1, 5), (1, 300), (1, 0), (70, 90), (3, 3)]
    case = attention_case(lengths, (6, 2), 24, dtype=DTYPE, device=DEVICE, value_dim=value_dim)
    own = random_sinks(6, DTYPE, DEVICE) if sinks else None
    out = paged_attention(
        *inputs(case), scale=0.3, sliding_window=window, softcap=softcap, sinks=own,
        tiles=case.tiles(),
    )  # fmt: skip
    expected = paged_attention_reference(*inputs(case), 0.3, window, softcap, own)
    assert_close(out, expected, DTYPE)


@pytest.mark.parametrize(
    ("programs", "window"), [(1, None), (1, 40), (14, 128), (14, 200), (2000, None), (2000, 40)]
)
def test_splits_of_contexts(programs: int, window: int | None):
    case = attention_case([(1, n) for n in CONTEXTS], (4, 2), 16, dtype=DTYPE, device=DEVICE)
    check(decode(case, window, programs), case, window)


@pytest.mark.parametrize("programs", [1, 40, 4000])
def test_the_work_covers_each_token_once(programs: int):
    """More sequences than are planned at a time; prompts, idle and padding rows among them."""
    new = [1, 1, 5, 1, 0, 1] * 60
    contexts = [1 + 37 * s % 1900 if s % 17 else 0 for s in range(len(new))]
    contexts[3] = 40_000
    starts = torch.tensor([0, *new], device=DEVICE).cumsum(0).int()
    lengths = torch.tensor(contexts, dtype=torch.int32, device=DEVICE)
    q = torch.empty(sum(new), 4, 16, dtype=DTYPE, device=DEVICE)
    items, arrivals = decode_work(q, 2, starts, lengths, None, programs)
    assert not arrivals.any()
    assert arrivals.shape == (len(new), 2)
    seen: dict[int, list[tuple[int, ...]]] = {}
    for place, (sequence, *item) in enumerate(items.tolist()):
        if sequence >= 0:
            seen.setdefault(sequence, []).append((place, *item))
    assert set(seen) == {s for s, count in enumerate(new) if count == 1}
    longest = 0
    for sequence, parts in seen.items():
        assert [first for *_, first, _ in parts] == [parts[0][0]] * len(parts)
        assert [count for *_, count in parts] == [len(parts)] * len(parts)
        assert len(parts) <= MAX_SPLITS
        ends = [0, *(end for _, _, end, _, _ in parts)]
        assert [begin for _, begin, *_ in parts] == ends[:-1]
        assert ends[-1] == contexts[sequence]
        assert len(parts) == 1 or all(begin < end for begin, end in pairwise(ends))
        longest = max(longest, ends[1])
    fair = sum(contexts[s] for s in seen) / max(1, programs // 2)
    assert longest <= max(2 * fair, 128, 40_000 / MAX_SPLITS + 64), "splits are about equally long"


def test_arrivals_are_counted_anew_in_each_layer():
    case = attention_case([(1, 300), (1, 700), (1, 5)], (4, 2), 16, dtype=DTYPE, device=DEVICE)
    check(decode(case, programs=20, passes=2), case)


def test_results_are_the_same_bit_for_bit():
    """Whoever of the splits arrives last."""
    case = attention_case([(1, 700), (1, 300)], (4, 2), 16, dtype=DTYPE, device=DEVICE)
    first = decode(case, programs=40)
    for _ in range(1 if INTERPRETED else 20):
        assert torch.equal(decode(case, programs=40), first)


@pytest.mark.parametrize(
    ("heads", "block_size"), [((2, 2), 8), ((3, 1), 32), ((8, 1), 16), ((40, 2), 8), ((40, 2), 32)]
)
def test_decode_of_groups_and_block_sizes(heads: tuple[int, int], block_size: int):
    """40 heads for 2: two tiles of 16 rows for each KV head."""
    case = attention_case([(1, 7), (1, 260)], heads, 32, block_size, DTYPE, DEVICE)
    check(decode(case, programs=8), case)


@pytest.mark.parametrize("window", [None, 5, 64, 100])
@pytest.mark.parametrize(("heads", "block_size"), [((3, 1), 8), ((4, 1), 32), ((80, 1), 16)])
def test_prefill_behind_a_prefix(heads: tuple[int, int], block_size: int, window: int | None):
    """Tiles end before, at and behind blocks of 64 tokens; 80 heads for one make 128 rows."""
    lengths = [(2, 2), (70, 70), (33, 64), (16, 80), (3, 200), (40, 129)]
    if heads[0] == 80:
        lengths = [(2, 66), (3, 3)]
    case = attention_case(lengths, heads, 16, block_size, DTYPE, DEVICE)
    check(prefill(case, window), case, window)


@pytest.mark.parametrize(("heads", "head_dim"), [((4, 1), 16), ((3, 1), 80), ((2, 2), 64)])
def test_unpaged_prefill(heads: tuple[int, int], head_dim: int):
    """Sequences end before, at and behind blocks of 64 tokens; those with one token are not its."""
    lengths = [(2, 2), (1, 70), (64, 64), (129, 129), (1, 1), (70, 70)]
    case = attention_case(lengths, heads, head_dim, dtype=HALF, device=DEVICE)
    one_new = torch.tensor([count == 1 for count, _ in lengths for _ in range(count)])
    expected = paged_attention_reference(*inputs(case), 0.3)
    out = unpaged_prefill(case)
    assert_close(out[~one_new], expected[~one_new], HALF)
    assert out[one_new].isnan().all()


def test_what_is_no_number_stays_in_its_sequence():
    """Rows that follow each other in one buffer, less than a block of them."""
    case = attention_case([(3, 3), (5, 5), (90, 90)], (4, 2), 16, dtype=HALF, device=DEVICE)
    wanted = unpaged_prefill(case)
    for part in (case.k, case.v):
        part[3:8] = float("nan")
    out = unpaged_prefill(case)
    assert out[3:8].isnan().all()
    for rows in (slice(3), slice(8, None)):
        assert torch.equal(out[rows], wanted[rows])


@pytest.mark.parametrize("rows", [False, True], ids=["pages", "rows"])
def test_prompts_beside_decode(rows: bool):
    lengths = [(1, 30), (7, 7), (20, 20), (1, 3)]
    case = attention_case(lengths, (4, 2), 16, dtype=HALF, device=DEVICE)
    own = (case.k, case.v) if rows else None
    check(paged_attention(*inputs(case), scale=0.3, tiles=case.tiles(), rows=own), case)


def test_each_kernel_writes_its_own_rows():
    case = attention_case([(1, 9), (3, 300), (1, 140), (2, 2)], (4, 2), 16, dtype=DTYPE,
                          device=DEVICE)  # fmt: skip
    expected = paged_attention_reference(*inputs(case), 0.3)
    one_new = torch.tensor([True, False, False, False, True, False, False])
    decoded = decode(case, programs=12, out=torch.zeros_like(case.q))
    prefilled = prefill(case, out=torch.zeros_like(case.q))
    for out, own in ((decoded, one_new), (prefilled, ~one_new)):
        assert not out[~own].any()
        assert_close(out[own], expected[own], DTYPE)
    for has_decode, own in ((True, one_new), (False, ~one_new)):
        out = paged_attention(
            *inputs(case), scale=0.3, has_decode=has_decode,
            tiles=None if has_decode else case.tiles(),
        )  # fmt: skip
        assert torch.equal(out.isnan().any(-1).any(-1).cpu(), ~own)


@pytest.mark.parametrize("block", [10, 140])
def test_the_largest_scores_win_over_all_splits(block: int):
    """Scores of thousands in one of the first or of the last splits."""
    case = attention_case([(1, 2300), (1, 130)], (2, 1), 16, dtype=DTYPE, device=DEVICE)
    case.q.mul_(100)
    case.k_cache[int(case.block_tables[0, block])].mul_(20)
    check(decode(case, programs=80), case)


def test_static_buffers_are_refilled():
    """One launch, as a CUDA graph keeps it, serves any contexts; on a GPU it is such a graph."""
    mixes = [[300, 1, 129, 0], [1, 513, 0, 0], [128, 64, 200, 77]]
    cases = [
        attention_case([(1, context) for context in mix], (4, 2), 16, dtype=DTYPE, device=DEVICE)
        for mix in mixes
    ]
    blocks = max(len(case.k_cache) for case in cases)
    columns = max(case.block_tables.shape[1] for case in cases)
    static = attention_case([(1, 16 * columns)] * 4, (4, 2), 16, dtype=DTYPE, device=DEVICE)
    assert len(static.k_cache) >= blocks
    run = launcher(static)
    for case in cases:
        static.q.copy_(case.q)
        static.context_lens.copy_(case.context_lens)
        static.block_tables[:, : case.block_tables.shape[1]] = case.block_tables
        static.k_cache[: len(case.k_cache)] = case.k_cache
        static.v_cache[: len(case.v_cache)] = case.v_cache
        check(run(), case)


def launcher(case: AttentionCase) -> Callable[[], torch.Tensor]:
    if INTERPRETED:
        return lambda: decode(case, programs=24)
    decode(case, programs=24)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode(case, programs=24)

    def replay() -> torch.Tensor:
        graph.replay()
        return out

    return replay

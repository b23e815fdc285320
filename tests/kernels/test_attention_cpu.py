"""The CPU path of paged attention against its reference."""

import pytest
import torch

from multilora_kernels import paged_attention_cpu, paged_context
from multilora_kernels.paged_attention import paged_attention, paged_attention_reference
from multilora_kernels.paged_context import PagedContext
from support.kernels.cases import assert_close, attention_case, random_sinks

LENGTHS = {  # (new, context) tokens of each sequence
    "decode": [(1, 1), (1, 16), (1, 17), (1, 50)],
    "prefill": [(5, 5), (33, 33)],
    "prefill behind a cached prefix": [(5, 21), (16, 48)],
    "mixed": [(1, 30), (7, 7), (1, 3), (20, 41)],
}


@pytest.mark.parametrize("window", [None, 6], ids=["full", "window"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "head_dim"), [((4, 4), 16), ((8, 2), 32), ((6, 2), 80)])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=list(LENGTHS))
def test_attention(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    window: int | None,
):
    case = attention_case(lengths, heads, head_dim, dtype=dtype)
    inputs = (case.q, case.k_cache, case.v_cache, case.cu_seqlens_q, case.context_lens,
              case.block_tables)  # fmt: skip
    out = paged_attention(
        *inputs, scale=0.3, sliding_window=window,
    )  # fmt: skip
    assert_close(out, paged_attention_reference(*inputs, 0.3, window), dtype)


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20], ids=["one by one", "together"])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_layers_of_one_pass_share_a_context(
    head_dim: int, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    """Long beside short, an item without new tokens, layers with and without a window."""
    monkeypatch.setattr(paged_context, "_CHUNK_BYTES", chunk_bytes)
    lengths = [(1, 9), (0, 20), (1, 200), (3, 40), (1, 33), (1, 17)]
    case = attention_case(lengths, (4, 2), head_dim)
    inputs = (case.q, case.k_cache, case.v_cache, case.cu_seqlens_q, case.context_lens,
              case.block_tables)  # fmt: skip
    context = PagedContext(*inputs[3:])
    for window in (None, 6, 37, None):
        out = paged_attention(
            *inputs, scale=0.3, sliding_window=window,
            context=context,
        )  # fmt: skip
        assert_close(out, paged_attention_reference(*inputs, 0.3, window), torch.float32)


@pytest.mark.parametrize(
    ("contexts", "limit", "sizes"),
    [
        ([16] * 8, 3 * 16, [3, 3, 2]),  # room for three of them
        ([100, 100], 3 * 16, [1, 1]),
        ([4, 36, 37], 1000, [2, 1]),  # short ones may differ by 32 tokens
        ([40, 80, 81], 1000, [2, 1]),  # long ones by a factor of two
    ],
)
def test_what_is_gathered_at_once_is_bounded(
    contexts: list[int], limit: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
):
    """By a number of tokens, whose keys are widened to float32."""
    monkeypatch.setattr(paged_context, "_CHUNK_BYTES", limit * 2 * 16 * 4)
    case = attention_case([(1, context) for context in contexts], (4, 2), 16, dtype=torch.bfloat16)
    context = PagedContext(case.cu_seqlens_q, case.context_lens, case.block_tables)
    plan = context.plan(case.k_cache, None)
    longest = [chunk.slots.numel() // size for chunk, size in zip(plan.decode, sizes, strict=True)]
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    assert longest == [contexts[end - 1] for end in ends]


@pytest.mark.parametrize("scores", [1, 1 << 22], ids=["query by query", "together"])
@pytest.mark.parametrize("window", [None, 6], ids=["full", "window"])
@pytest.mark.parametrize("value_dim", [16, 24, 48])
@pytest.mark.parametrize(
    ("softcap", "sinks"), [(None, False), (0.8, False), (None, True), (2.0, True)]
)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=list(LENGTHS))
def test_soft_caps_sinks_and_values_of_another_size(
    lengths: list[tuple[int, int]],
    softcap: float | None,
    sinks: bool,
    value_dim: int,
    window: int | None,
    scores: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(paged_attention_cpu, "_SCORES", scores)
    case = attention_case(lengths, (6, 2), 24, value_dim=value_dim)
    inputs = (case.q, case.k_cache, case.v_cache, case.cu_seqlens_q, case.context_lens,
              case.block_tables)  # fmt: skip
    own = random_sinks(6, torch.bfloat16) if sinks else None
    out = paged_attention(*inputs, scale=0.3, sliding_window=window, softcap=softcap, sinks=own)
    assert_close(out, paged_attention_reference(*inputs, 0.3, window, softcap, own), torch.float32)
    if softcap or sinks:
        plain = paged_attention_reference(*inputs, 0.3, window)
        assert (out - plain).abs().max() > 0.05

"""The sampler against plain references: order, filters, penalties, seeds, distributions."""

import math
from typing import Any

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from multilora.forward.sampler import sample
from multilora.scheduling.batch import BatchItem
from multilora_api.sampling import SamplingParams
from support.engine.sampler import drawn, inputs_of, item, run


def counts(logits: torch.Tensor, n: int, **kwargs: Any) -> torch.Tensor:
    """How often each token comes out of n draws with seeds 0..n-1."""
    picked = run(logits.expand(n, -1), *(drawn(seed, **kwargs) for seed in range(n))).token_ids
    return picked.bincount(minlength=logits.shape[1]).double()


def kept_reference(logits: list[float], params: SamplingParams) -> set[int]:
    """min_p, then top_k, then top_p, one token at a time."""
    scaled = [x / params.temperature for x in logits]
    top = max(scaled)
    kept = [t for t, x in enumerate(scaled) if math.exp(x - top) >= params.min_p]
    kept.sort(key=lambda t: -scaled[t])
    kept = kept[: params.top_k or None]
    total = sum(math.exp(scaled[t] - top) for t in kept)
    mass, nucleus = 0.0, set[int]()
    for token in kept:
        if params.top_p < 1 and mass >= params.top_p:
            break
        nucleus.add(token)
        mass += math.exp(scaled[token] - top) / total
    return nucleus


def test_greedy_takes_the_argmax_and_skips_everything_else() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    inputs = inputs_of([item(SamplingParams())] * 4, 50)
    assert inputs.draws is None and inputs.penalties is None and inputs.suppressed is None
    result = sample(logits, inputs)
    assert result.token_ids.tolist() == logits.argmax(-1).tolist()
    assert result.logprobs is None and result.top_ids is None


def test_logprobs_are_of_the_untouched_logits() -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    harsh = SamplingParams(
        temperature=3.0, top_k=2, seed=9, logprobs=4, repetition_penalty=5.0, min_tokens=3
    )
    result = run(logits, item(harsh), item(SamplingParams(logprobs=0)), item(SamplingParams()))
    assert torch.equal(logits, before)
    expected = logits.double().log_softmax(-1)
    assert result.logprobs is not None
    chosen = expected.gather(1, result.token_ids.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(result.logprobs.double(), chosen, rtol=0, atol=1e-5)
    assert result.likelier is not None
    assert torch.equal(result.likelier, (expected > chosen.unsqueeze(1)).sum(-1))
    assert result.top_ids is not None and result.top_logprobs is not None
    best = expected.topk(4, dim=-1)
    assert torch.equal(result.top_ids, best.indices)
    torch.testing.assert_close(result.top_logprobs.double(), best.values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(2)) * 2
    n = 20000
    expected = n * (logits[0].double() / temperature).softmax(-1)
    observed = counts(logits, n, temperature=temperature)
    likely = expected >= 5
    chi2 = ((observed - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi2 < 50  # 19 degrees of freedom: 0.9999 quantile; the seeds are fixed


def test_draws_at_successive_positions_of_one_seed_are_independent() -> None:
    logits = torch.zeros(1, 8)
    n = 4000
    items = [drawn(seed=1, position=position) for position in range(n)]
    tokens = run(logits.expand(n, -1), *items).token_ids
    pairs = (tokens[:-1] * 8 + tokens[1:]).bincount(minlength=64).double()
    assert ((pairs - n / 64) ** 2 / (n / 64)).sum() < 120


def test_a_large_flat_vocabulary_is_drawn_evenly() -> None:
    tokens = run(torch.zeros(64, 50000), *(drawn(seed) for seed in range(64))).token_ids
    thirds = (tokens * 4 // 50000).bincount(minlength=4)
    assert thirds.min() >= 6 and len(set(tokens.tolist())) >= 62


FILTERS: tuple[dict[str, Any], ...] = (
    {"top_k": 1}, {"top_k": 5}, {"top_k": 999}, {"top_p": 0.3}, {"top_p": 0.9}, {"top_p": 1e-6},
    {"min_p": 0.2}, {"min_p": 1.0}, {"top_k": 4, "top_p": 0.7, "temperature": 0.6},
    {"min_p": 0.05, "top_k": 12, "top_p": 0.8, "temperature": 1.7},
)  # fmt: skip


@pytest.mark.parametrize("kwargs", FILTERS, ids=str)
def test_filters_keep_exactly_what_the_reference_keeps(kwargs: dict[str, Any]) -> None:
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(3)) * 1.5
    params = SamplingParams(**{"temperature": 1.0, **kwargs})
    kept = kept_reference(logits[0].double().tolist(), params)
    observed = counts(logits, 3000, **kwargs)
    weights = torch.zeros(30, dtype=torch.float64)
    for token in kept:
        weights[token] = math.exp(float(logits[0, token]) / params.temperature)
    expected = 3000 * weights / weights.sum()
    assert set(observed.nonzero().flatten().tolist()) <= kept
    assert {t for t in kept if expected[t] > 15} <= set(observed.nonzero().flatten().tolist())
    chi2 = ((observed - expected)[weights > 0] ** 2 / expected[weights > 0].clamp(min=1)).sum()
    assert chi2 < 2 * len(kept) + 40


def test_top_p_beyond_the_candidates_sorts_the_whole_row() -> None:
    logits = torch.zeros(2, 5000)
    logits[:, 100:2600] = 3.0
    items = [drawn(0, top_p=0.5), drawn(1, top_p=0.9999)]
    inputs = inputs_of(items, 5000)
    assert inputs.draws is not None and inputs.draws.candidates < 2500
    picked = torch.stack(
        [run(logits, drawn(s, top_p=0.5), drawn(s, top_p=0.9999)).token_ids for s in range(200)]
    )
    inside = (picked >= 100) & (picked < 2600)
    assert inside[:, 0].all() and not inside[:, 1].all()


def test_ties_at_the_edge_of_a_filter_are_all_kept() -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0, -9.0]])
    assert (counts(logits, 300, top_k=2)[:3] > 60).all()
    assert (counts(logits, 300, top_p=0.2)[:3] > 60).all()


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(4)) * 1e4
    items = [drawn(s, temperature=t, top_p=0.9) for s, t in enumerate((1e-40, 1e-9, 1e-300))]
    assert run(logits, *items).token_ids.tolist() == logits.argmax(-1).tolist()


def test_repetition_penalty_equals_transformers() -> None:
    logits = torch.randn(1, 60, generator=torch.Generator().manual_seed(5))
    prompt, output = (5, 9, 5), (11, 12)
    params = SamplingParams(repetition_penalty=1.7, temperature=1.0, top_k=1, seed=0)
    processor: Any = RepetitionPenaltyLogitsProcessor(1.7)
    tokens = torch.tensor([prompt + output])
    for token in (5, 9, 11, 12, 20):
        for value in (4.0, 6.0, -0.5):
            row = logits.clone()
            row[0, token] = value
            expected = processor(tokens, row.clone()).argmax()
            assert run(row, item(params, prompt, output)).token_ids[0] == expected
            greedy = item(SamplingParams(repetition_penalty=1.7), prompt, output)
            assert run(row, greedy).token_ids[0] == expected


def test_presence_and_frequency_count_output_tokens_only() -> None:
    logits = torch.tensor([[0.0, 3.0, 0.0, 0.0, 2.0, 0.0, 0.0, 2.5]])

    def pick(output: tuple[int, ...], **kwargs: Any) -> int:
        params = SamplingParams(**kwargs)
        return int(run(logits, item(params, prompt=(1, 1, 1), output=output)).token_ids[0])

    assert pick((), presence_penalty=2.0, frequency_penalty=2.0) == 1
    assert pick((1,), presence_penalty=0.4) == pick((1, 1, 1), presence_penalty=0.4) == 1
    assert pick((1,), presence_penalty=0.6) == 7
    assert pick((1,), frequency_penalty=0.4) == 1 and pick((1, 1), frequency_penalty=0.4) == 7
    assert pick((1, 1, 7), frequency_penalty=0.6) == 4
    assert pick((1, 7, 4), presence_penalty=-1.0) == 1


def test_penalties_touch_their_own_row_only() -> None:
    logits = torch.tensor([[9.0, 8.0, 0.0]]).repeat(3, 1)
    harsh = SamplingParams(repetition_penalty=3.0)
    rows = [item(SamplingParams(), (0,)), item(harsh, (0,)), item(harsh, (0, 1, 2))]
    assert run(logits, *rows).token_ids.tolist() == [0, 1, 0]


def test_eos_is_suppressed_below_min_tokens_only() -> None:
    logits = torch.zeros(1, 10)
    logits[0, 2], logits[0, 3], logits[0, 7] = 9.0, 8.0, 7.0
    params = SamplingParams(min_tokens=2, max_tokens=5)
    sampled = SamplingParams(min_tokens=2, max_tokens=5, temperature=0.1, seed=1, ignore_eos=True)
    for p in (params, sampled):
        picked = [run(logits, item(p, output=(5,) * n)).token_ids.item() for n in range(4)]
        assert picked[:2] == [7, 7] and set(picked[2:]) <= {2, 3}
    outside = inputs_of([item(params)], 3).suppressed
    assert outside is not None and outside.tolist() == [[0], [2]]


def test_stop_tokens_are_suppressed_below_min_tokens_in_their_row() -> None:
    logits = torch.zeros(1, 10)
    logits[0, 5], logits[0, 7] = 9.0, 8.0
    stops = SamplingParams(min_tokens=2, max_tokens=5, stop_token_ids=(5, 6))
    other = SamplingParams(min_tokens=2, max_tokens=5)
    rows = [item(stops), item(other), item(stops, output=(1, 1))]
    assert run(logits.expand(3, -1), *rows).token_ids.tolist() == [7, 5, 5]


def test_a_seed_gives_the_same_token_in_any_batch() -> None:
    logits = torch.randn(12, 300, generator=torch.Generator().manual_seed(6))
    kinds: list[dict[str, Any]] = [{}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}]
    items = [drawn(seed=(1 << 64) - 1 - i, position=i, **kinds[i % 4]) for i in range(11)]
    items.append(item(SamplingParams()))
    together = run(logits, *items).token_ids
    alone = [int(run(logits[i : i + 1], items[i]).token_ids) for i in range(12)]
    assert together.tolist() == alone
    backwards = run(logits.flip(0), *reversed(items)).token_ids
    assert backwards.tolist() == alone[::-1]


def test_a_preempted_sequence_draws_the_same_token() -> None:
    params = SamplingParams(temperature=1.0, seed=4)
    logits = torch.zeros(1, 1000)
    sequence = item(params, output=(8, 9)).sequence
    sequence.num_computed_tokens = 3
    decoding = BatchItem.next(sequence, 1)
    recomputed = item(params, output=(8, 9))
    first = run(logits, decoding).token_ids
    assert torch.equal(first, run(logits, recomputed).token_ids)
    assert not torch.equal(first, run(logits, item(params, output=(8, 9, 9))).token_ids)


def test_the_noise_is_fixed_for_good() -> None:
    """Changing the noise would change the text of every seeded request in the field."""
    tokens = run(torch.zeros(4, 32000), *(drawn(seed) for seed in (0, 1, 2, 1 << 63))).token_ids
    assert tokens.tolist() == [11848, 335, 5221, 25234]


def test_a_temperature_without_a_seed_is_a_defect() -> None:
    with pytest.raises(ValueError, match="seed"):
        inputs_of([item(SamplingParams(temperature=1.0))], 10)

"""logit_bias, grammar masks and typical_p against plain references; other rows notice nothing."""

import math
from typing import Any

import pytest
import torch

from multilora_api.sampling import SamplingParams
from support.engine.sampler import EOS, bound, drawn, item, run


def typical_reference(logits: list[float], temperature: float, mass: float) -> set[int]:
    """The tokens kept, one at a time, in float64."""
    top = max(logits)
    weights = [math.exp((x - top) / temperature) for x in logits]
    p = [weight / sum(weights) for weight in weights]
    entropy = -sum(x * math.log(x) for x in p if x)
    far = {t: abs(-math.log(x) - entropy) for t, x in enumerate(p) if x}
    kept, held = set[int](), 0.0
    for token in sorted(far, key=lambda t: far[t]):
        if held >= mass:
            break
        kept.add(token)
        held += p[token]
    return kept


@pytest.mark.parametrize("num_bits", [37, 40, 64])  # the tokenizer's ids: padded, more than V
def test_only_allowed_tokens_come_out(num_bits: int) -> None:
    logits = torch.randn(1, 37, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    allowed = {1, 8, 20, 36}
    rows = [bound(drawn(seed, temperature=5.0), allowed, num_bits) for seed in range(300)]
    picked = run(logits.expand(300, -1), *rows).token_ids.tolist()
    assert set(picked) == allowed
    greedy = run(logits, bound(item(SamplingParams()), allowed, num_bits)).token_ids.item()
    assert greedy == max(allowed, key=lambda token: logits[0, token].item())
    assert torch.equal(logits, before)


@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_the_harshest_penalties_stay_within_what_is_allowed(penalty: float) -> None:
    logits = 80 * torch.randn(1, 37, generator=torch.Generator().manual_seed(2))
    harsh: dict[str, Any] = {
        "repetition_penalty": penalty,
        "presence_penalty": 2.0,
        "frequency_penalty": -2.0,
    }
    rows = [
        bound(drawn(seed, temperature=temperature, **harsh), {1, 8}, 37)
        for seed, temperature in enumerate((0.0, 1e-30, 1.0, 100.0))
    ]
    assert set(run(logits.expand(4, -1), *rows).token_ids.tolist()) <= {1, 8}


def test_rows_without_a_grammar_draw_what_they_drew() -> None:
    logits = torch.randn(40, 50, generator=torch.Generator().manual_seed(1))
    plain = [drawn(seed, temperature=2.0) for seed in range(40)]
    mixed = [bound(row, {7, 9}, 64) if at % 2 else row for at, row in enumerate(plain)]
    alone, beside = run(logits, *plain).token_ids, run(logits, *mixed).token_ids
    assert torch.equal(alone[::2], beside[::2])
    assert set(beside[1::2].tolist()) == {7, 9}


@pytest.mark.parametrize("kwargs", [{"min_tokens": 3}, {"ignore_eos": True}], ids=str)
def test_the_end_is_held_back_unless_nothing_else_may_come(kwargs: dict[str, Any]) -> None:
    logits = torch.zeros(1, 50)
    logits[0, EOS[0]] = 10.0
    params = SamplingParams(max_tokens=9, **kwargs)
    assert run(logits, bound(item(params), {EOS[0], 30}, 50)).token_ids.item() == 30
    for nothing_else in ({EOS[0]}, {EOS[0], 50}):  # the tokenizer may have ids that V lacks
        assert run(logits, bound(item(params), nothing_else, 56)).token_ids.item() == EOS[0]
    assert run(logits, bound(item(SamplingParams()), {EOS[0], 30}, 50)).token_ids.item() == EOS[0]


def test_an_adapters_end_may_come_where_the_bases_may() -> None:
    """One that the base model lacks never does."""
    logits = torch.zeros(1, 50)
    logits[0, 31], logits[0, 30] = 10.0, 5.0
    for own_ends, picked in (((31, 99), 31), ((99,), 30), ((), 30)):
        row = item(SamplingParams(), own_ends=own_ends)
        assert run(logits, bound(row, {EOS[0], 30}, 50)).token_ids.item() == picked


@pytest.mark.parametrize(
    ("output", "banned", "kept_out"),
    [
        ((), ((7,), (8,)), {7, 8}),
        ((9,), ((9, 7), (4, 8)), {7}),
        ((4, 9), ((4, 9, 7), (9, 8), (4, 5)), {7, 8}),
        ((9,), ((6, 9, 7),), set()),  # 6 is the end of the prompt, which was not generated
        ((), ((99,),), set()),  # a token that the base model does not have
    ],
)
def test_a_banned_row_of_tokens_is_not_completed(
    output: tuple[int, ...], banned: tuple[tuple[int, ...], ...], kept_out: set[int]
) -> None:
    logits = torch.zeros(1, 20)
    params = [SamplingParams(seed=seed, temperature=1.0) for seed in range(400)]
    rows = [item(each, output=output, banned=banned) for each in params]
    seen = set(run(logits.expand(400, -1), *rows).token_ids.tolist())
    assert seen == set(range(20)) - kept_out


def test_allowed_token_ids() -> None:
    logits = torch.randn(1, 37, generator=torch.Generator().manual_seed(7))
    allowed = (36, 3, EOS[0], 3)
    rows = [drawn(seed, temperature=5.0, allowed_token_ids=allowed) for seed in range(200)]
    seen = set(run(logits.expand(200, -1), *rows).token_ids.tolist())
    assert seen == set(allowed)
    ending = SamplingParams(allowed_token_ids=(EOS[0], 7), min_tokens=2)
    assert run(logits, item(ending)).token_ids.item() == 7
    only = SamplingParams(allowed_token_ids=EOS, min_tokens=2)
    assert run(logits, item(only)).token_ids.item() in EOS, "nothing else may come"
    assert run(logits, item(ending, banned=((7,),))).token_ids.item() in (EOS[0], 7)


def test_logprobs_of_a_bound_row_are_those_of_the_model() -> None:
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(2))
    result = run(logits, bound(item(SamplingParams(logprobs=2)), {4}, 30))
    assert result.logprobs is not None
    expected = logits.double().log_softmax(-1)[0, 4]
    torch.testing.assert_close(result.logprobs[0].double(), expected, rtol=0, atol=1e-5)


def test_bias_is_added_once_to_its_own_row() -> None:
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(3))
    before = logits.clone()
    biased = SamplingParams(logit_bias=((11, 100.0), (12, 90.0), (5, -100.0)))
    banned = SamplingParams(logit_bias=((int(logits[2].argmax()), -100.0),))
    picked = run(logits, item(biased), item(SamplingParams()), item(banned)).token_ids.tolist()
    second = before[2].clone()
    second[second.argmax()] = -torch.inf
    assert picked == [11, int(before[1].argmax()), int(second.argmax())]
    assert torch.equal(logits, before)


@pytest.mark.parametrize("mass", [1e-4, 0.2, 0.5, 0.95, 0.999999])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.8])
def test_typical_keeps_what_the_reference_keeps(mass: float, temperature: float) -> None:
    logits = torch.randn(1, 24, generator=torch.Generator().manual_seed(4)) * 2
    n = 4000
    rows = [drawn(seed, temperature=temperature, typical_p=mass) for seed in range(n)]
    seen = set(run(logits.expand(n, -1), *rows).token_ids.tolist())
    kept = typical_reference(logits[0].tolist(), temperature, mass)
    p = (logits[0].double() / temperature).softmax(0)
    assert seen <= kept
    assert {token for token in kept if p[token] / p[list(kept)].sum() > 0.005} <= seen


def test_typical_can_leave_out_the_most_likely_token() -> None:
    probabilities = torch.tensor([[0.4, *[0.1] * 6]])
    rows = [drawn(seed, typical_p=0.3) for seed in range(200)]
    seen = set(run(probabilities.log().expand(200, -1), *rows).token_ids.tolist())
    assert seen == {1, 2, 3, 4, 5, 6}, "ties of the last one stay"


def test_typical_touches_neither_greedy_rows_nor_others() -> None:
    logits = torch.randn(40, 50, generator=torch.Generator().manual_seed(5)) * 3
    plain = [drawn(seed) for seed in range(40)]
    mixed = [drawn(at, typical_p=0.2) if at % 2 else row for at, row in enumerate(plain)]
    assert torch.equal(run(logits, *plain).token_ids[::2], run(logits, *mixed).token_ids[::2])
    greedy = item(SamplingParams(typical_p=0.2))
    assert run(logits[:1], greedy).token_ids.item() == logits[0].argmax()


def test_typical_after_a_grammar_stays_within_it() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(6))
    rows = [bound(drawn(seed, typical_p=0.5), {3, 4, 5, 6}, 50) for seed in range(200)]
    seen = set(run(logits.expand(200, -1), *rows).token_ids.tolist())
    assert seen <= {3, 4, 5, 6} and seen

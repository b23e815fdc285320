"""The arithmetic of the benchmarks' tables."""

import pytest

from benchmarks.adapters.client import TimedAnswer, Work
from benchmarks.adapters.closed_loop import LoopResult, power_law, round_robin
from benchmarks.common.statistics import (
    COLUMNS,
    Figure,
    Ratio,
    markdown_table,
    percentile,
    text_table,
)


def test_percentiles_are_numpy_s() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert [percentile(values, p) for p in (0, 50, 75, 100)] == [1.0, 2.5, 3.25, 4.0]
    assert percentile(list(range(101)), 99) == 99
    assert percentile([7.0], 99) == 7.0
    with pytest.raises(ValueError, match="of nothing"):
        percentile([], 50)


def test_a_ratio_is_the_median_of_pairs() -> None:
    ratio = Ratio.of([2.0, 30.0, 9.0], [1.0, 10.0, 9.0])
    assert ratio == Ratio(value=2.0, low=1.5, high=2.5, pairs=3)
    with pytest.raises(ValueError, match="longer"):
        Ratio.of([1.0], [1.0, 2.0])


def test_a_figure_knows_its_side_of_the_target() -> None:
    def met(value: float, at_most: bool) -> bool | None:
        ratio = Ratio(value, value, value, 1)
        return Figure("x", ratio, "", "", target=1.1, at_most=at_most).met

    assert [met(value, True) for value in (1.0, 1.1, 1.2)] == [True, True, False]
    assert [met(value, False) for value in (1.0, 1.1, 1.2)] == [False, True, True]
    assert Figure("x", Ratio(1, 1, 1, 1), "", "").met is None


def test_tables() -> None:
    ratio = Ratio(1.25, 1.2, 1.3, 9)
    figure = Figure("cold / warm", ratio, "5 / 4 ms", "9 pairs", target=1.3, floor=1.05)
    cells = figure.cells()
    assert cells == [
        *("cold / warm", "1.250", "1.200 to 1.300", "≤ 1.3", "yes", "1.050"),
        *("5 / 4 ms", "9 pairs"),
    ]
    head, rule, row = text_table([COLUMNS, cells]).splitlines()
    assert head.index("ratio") == rule.index("  ─") + 2 == row.index("1.250")
    assert markdown_table([COLUMNS, cells]).splitlines()[1] == "|" + "---|" * len(COLUMNS)


def answer(submitted: float, *times: float) -> TimedAnswer:
    return TimedAnswer("r", Work("a", 1, len(times)), submitted, list(times), ended=True)


def test_gaps_lie_between_neighbours_within_the_phase() -> None:
    assert answer(0.0, 1.0, 2.0, 4.0, 7.0, 9.0).gaps(2.0, 7.5) == [2.0, 3.0]
    assert answer(0.0, 1.0).gaps(0.0, 9.0) == []


def test_traffic_counts_between_ramp_and_end() -> None:
    answers = [answer(0.0, 1.5, 2.5), answer(2.5, 3.0, 5.0), answer(5.5, 6.0)]
    counters = {"multilora_adapter_loads_total": 6.0}
    traffic = LoopResult(answers, 2.0, 5.0, counters, adapters_per_pass=1.0)
    assert traffic.first_tokens == [0.5]
    assert traffic.tokens_per_second == 1.0  # at 2.5, 3.0 and 5.0
    assert traffic.per_second("adapter_loads") == 2.0


def test_power_law_traffic() -> None:
    works = power_law(["a", "b", "c", "d"], prompt=5, tokens=8, seed=3)
    drawn = [next(works) for _ in range(5000)]
    counts = [sum(work.adapter_id == name for work in drawn) for name in "abcd"]
    expected = [5000 / rank / (25 / 12) for rank in (1, 2, 3, 4)]
    assert counts == pytest.approx(expected, rel=0.1)
    assert {work.prompt_tokens for work in drawn} == {5}
    assert {work.max_tokens for work in drawn} == set(range(4, 13))
    again = power_law(["a", "b", "c", "d"], prompt=5, tokens=8, seed=3)
    assert [next(again) for _ in range(50)] == drawn[:50]


def test_round_robin_traffic() -> None:
    works = round_robin(["a", "b", "c"], prompt=5, tokens=8, seed=0)
    assert [next(works).adapter_id for _ in range(7)] == list("abcabca")

"""Which decode passes are captured, and with which plan: the one whose passes take least time."""

import pytest

from multilora.forward import graphs
from multilora.forward.graphs import fastest_plan, graph_sizes
from multilora.lora.linear import PLANS, LoRAPlan


@pytest.mark.parametrize("rows", [1, 3, 8, 12, 64, 100, 256, 300, 512])
def test_every_batch_has_a_graph_that_is_not_much_too_large(rows: int) -> None:
    sizes = graph_sizes(rows)
    assert sizes == tuple(sorted(set(sizes)))
    assert sizes[-1] == rows
    for batch in range(1, rows + 1):
        size = next(size for size in sizes if size >= batch)
        assert size - batch <= max(7, batch / 4)


@pytest.mark.parametrize("best", PLANS, ids=str)
def test_the_fastest_is_kept_though_the_clock_is_noisy(
    best: LoRAPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[object] = []
    rounds = 0

    def prepare(plan: LoRAPlan) -> LoRAPlan:
        order.append(plan)
        return plan  # stands for what runs it

    def milliseconds(run: object) -> float:
        nonlocal rounds
        rounds += 1
        hiccup = 5.0 if rounds <= len(PLANS) or rounds % 7 == 0 else 0.0
        return (1.0 if run == best else 1.1) + hiccup

    monkeypatch.setattr(graphs, "_milliseconds", milliseconds)
    assert fastest_plan(prepare, lambda: order.append("load")) == best  # type: ignore[arg-type]
    assert order == [*PLANS, "load"]

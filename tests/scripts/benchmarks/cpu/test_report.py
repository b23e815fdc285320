"""Rates of a batch, and the tables of the benchmark of decoding on a CPU."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.common.machine import look
from benchmarks.cpu.load import DecodeLoad
from benchmarks.cpu.report import CPUReport
from benchmarks.cpu.streams import MeasurementError, Rates, _times, rates
from launcher.repository import REPOSITORY

DEMO = REPOSITORY / "model_repository/multilora_llm/1/demo"


def test_decode_counts_while_all_decode() -> None:
    early = [1.0, 2.0, 3.0, 4.0, 5.0]
    late = [2.0, 3.0, 4.0, 5.0, 6.0]
    found = rates([early, late], tokens=5)
    assert found == Rates(decode=2.0, end_to_end=10 / 6, first_token=1.5, together=True)
    assert rates([early, [2.0, 4.0, 6.0]], tokens=5).decode == pytest.approx((3 + 5 / 3) / 3)


def test_one_after_another_is_not_together() -> None:
    apart = rates([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], tokens=3)
    assert not apart.together and apart.decode == 1.0
    at_once = rates([[2.0], [2.0]], tokens=3)
    assert not at_once.together and at_once.decode == at_once.end_to_end == 3.0
    in_bursts = rates([[0.0] * 8 + [10.0], [5.0] * 8 + [10.0]], tokens=9)  # 2 of 18 while both do
    assert not in_bursts.together


def test_an_answer_has_the_tokens_that_were_asked_for() -> None:
    text = (1.5, b'data: {"choices":[{"text":"a"}]}\n')
    usage = (1.6, b'data: {"choices":[],"usage":{"completion_tokens":2}}\n')
    assert _times([text, text, usage], 1.0, 2) == [0.5, 0.5]
    for events, tokens in (([text, usage], 3), ([usage], 2), ([text], 2), ([], 2)):
        with pytest.raises(MeasurementError, match=f"of {tokens} tokens"):
            _times(events, 1.0, tokens)


def report(**others: Rates) -> CPUReport:
    """One round of mode distinct; ours decodes 10 tokens a second."""
    load = DecodeLoad(DEMO / "base", (DEMO / "adapters/sql",), (1,), ("distinct",), 8, 8, threads=2)
    found = {"ours": Rates(10.0, 5.0, 0.1, together=True, others=0.02), **others}
    return CPUReport(
        command="command",
        machine=look(),
        seconds=60.0,
        load=load,
        bandwidth=20.0 * load.pass_bytes("distinct", 1),
        versions=dict.fromkeys(others, "1.0"),
        samples={name: {0: {("distinct", 1): each}} for name, each in found.items()},
        remarks=["something was left out"],
    )


def test_ours_is_compared_with_each_peer(tmp_path: Path) -> None:
    vllm = Rates(8.0, 10.0, 0.2, together=False)
    made = report(vllm=vllm, peft=replace(vllm, decode=4.0, together=True))
    goals = [(figure.ratio.value, figure.target, figure.met) for figure in made.figures()]
    assert goals == [(1.25, 1.1, True), (0.5, None, None), (2.5, None, None), (0.5, None, None)]
    assert made.figures()[0].floor == pytest.approx(20 / 8)
    rows = [line.split() for line in made.table().splitlines() if line.startswith("distinct  1")]
    assert rows[0] == ["distinct", "1", "ours", "10.0", "20", "0.50", "5.0", "100", "2%", "1"]
    assert [row[3] for row in rows] == ["10.0", "8.0*", "4.0"]
    page = made.write(tmp_path)
    assert "\n- something was left out\n" in page.read_text()
    assert "\n- Decode with *: " in page.read_text()
    saved = json.loads(page.with_suffix(".json").read_text())
    assert [sample["server"] for sample in saved["samples"]] == ["ours", "vllm", "peft"]
    assert str(DEMO) not in json.dumps(saved)


def test_rounds_without_a_partner_make_no_pair() -> None:
    made = report(vllm=Rates(8.0, 10.0, 0.2, together=True))
    late = {1: made.samples["vllm"][0]}
    assert replace(made, samples={**made.samples, "vllm": late}).figures() == []

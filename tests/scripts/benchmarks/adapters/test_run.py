"""The benchmark of the adapters' life, on a tiny model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from benchmarks.adapters import run as bench_adapters
from benchmarks.adapters.checkpoint import LLAMA_100M, TINY, Checkpoints, adapter_name
from benchmarks.adapters.client import BenchmarkError, Work, serving
from benchmarks.adapters.plan import QUICK, BenchmarkPlan
from benchmarks.adapters.report import AdaptersReport
from benchmarks.common.machine import look
from benchmarks.common.statistics import KEEP


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkPlan:
    cache = tmp_path_factory.mktemp("bench")
    rounds = replace(QUICK, stream_rounds=1, room_rounds=1, many_rounds=1, pairs=2, loads=2)
    return replace(rounds, cache=cache, room_seconds=0.3, many_seconds=0.3)


def num_elements(file: Path) -> int:
    with safe_open(file, "pt") as tensors:
        return sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118


def test_checkpoints_hold_what_they_say(plan: BenchmarkPlan) -> None:
    files = plan.checkpoints
    assert num_elements(files.base() / "model.safetensors") == TINY.num_parameters
    adapter = files.adapters(10) / adapter_name(0) / "adapter_model.safetensors"
    assert num_elements(adapter) == TINY.adapter_parameters
    assert round(LLAMA_100M.num_parameters / 1e6) == 100


def test_adapters_share_files_and_are_written_once(plan: BenchmarkPlan) -> None:
    folder = plan.checkpoints.adapters(10)
    paths = [folder / adapter_name(i) / "adapter_model.safetensors" for i in range(10)]
    assert len({path.stat().st_ino for path in paths}) == 8
    before = folder.stat().st_mtime_ns
    assert Checkpoints(TINY, plan.cache).adapters(10) == folder
    assert folder.stat().st_mtime_ns == before


def test_requests_run_to_their_end_or_end_the_benchmark(plan: BenchmarkPlan) -> None:
    with serving(plan.config(3, room=2, host_room=2)) as client:
        answer = client.run(Work(adapter_name(0), 5, 7))
        assert len(answer.times) == 7
        assert 0 < answer.first_token <= answer.times[-1] - answer.submitted
        stream = client.submit(Work("", 5, 2000))
        client.read()
        client.abort(stream)
        assert stream.ended and len(stream.times) < 2000
        (broken := plan.checkpoints.adapters(3) / "broken").mkdir()
        (broken / "adapter_config.json").write_text("{}")
        with pytest.raises(BenchmarkError, match=r"broken.*ended after 0 tokens"):
            client.run(Work("broken", 5, 7))


def test_all_scenarios(plan: BenchmarkPlan, tmp_path: Path) -> None:
    results = {number: run(plan) for number, run in bench_adapters.SCENARIOS.items()}
    figures = [figure for result in results.values() for figure in result.figures]
    assert [figure.target for figure in figures] == [1.3, 1.1, 1.1, None, 1.5, 0.97, None, None]
    assert all(figure.ratio.value > 0 for figure in figures)
    assert "1.00 reads per adapter" in results[1].note

    report = AdaptersReport("command", plan, look(), 60.0, results)
    page = report.write(tmp_path)
    page.write_text(page.read_text() + "What limits it.\n")
    assert report.write(tmp_path) == page
    assert page.read_text().endswith(f"{KEEP}\nWhat limits it.\n")
    assert len(list(tmp_path.glob("*.png"))) == 4
    assert all(path.name in page.read_text() for path in tmp_path.glob("*.png"))
    saved = json.loads(page.with_suffix(".json").read_text())
    assert saved["scenarios"]["1"]["samples"]["cold"]["count"] == plan.pairs
    assert saved["plan"]["shape"]["hidden_size"] == TINY.hidden_size
    assert report.table().count("\n") == 1 + len(figures)


def test_command_line(
    plan: BenchmarkPlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench_adapters, "QUICK", plan)
    assert bench_adapters.main(["--quick", "--only", "1", "--out", str(tmp_path)]) == 0
    assert "1 cold / warm first token" in capsys.readouterr().out.splitlines()[-1]
    page = (tmp_path / "adapters-cpu-bfloat16.md").read_text()
    assert "python scripts/bench_adapters.py --quick --only 1\n" in page
    with pytest.raises(SystemExit):
        bench_adapters.main(["--only", "5"])
    assert "scenarios are 1, 2, 3, 4; got '5'" in capsys.readouterr().err

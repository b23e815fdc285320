"""The benchmark of the host: a whole server whose device is a clock."""

import pytest

from benchmarks.host.run import main
from benchmarks.host.times import pass_seconds


def test_passes_take_longer_with_more_rows_and_prompts() -> None:
    assert pass_seconds(32) == pytest.approx(0.00793)
    assert pass_seconds(1) < pass_seconds(20) < pass_seconds(32)
    assert pass_seconds(8, 440) == pytest.approx(pass_seconds(8) + 0.01)


def test_no_more_than_the_bound_comes_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--streams", "4", "--tokens", "60", "--rounds", "1"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()[-4:]
    assert head.split()[:5] == ["streams", "read", "tok/s", "bound", "ratio"]
    assert [row.split()[1] for row in rows] == ["shared", "own"]
    for row in rows:
        streams, _, rate, bound, ratio = row.split()[:5]
        assert streams == "4" and float(bound) == pytest.approx(4 / pass_seconds(4), abs=1)
        assert 0.05 < float(ratio) < 1.1 and float(ratio) == pytest.approx(
            float(rate) / float(bound), abs=0.01
        )

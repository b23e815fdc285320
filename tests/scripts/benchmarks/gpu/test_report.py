"""Tables and remarks of the GPU benchmark."""

from pathlib import Path
from typing import Any

from benchmarks.common.machine import look
from benchmarks.gpu.report import GPUReport
from benchmarks.gpu.tables import decode_table, fastest_other, lora_table, problems, short_lora


def lora_row(rows: int, mix: str, rank: str = "16", **us: float) -> dict[str, Any]:
    added = {"ours": 3.0, "theirs": 6.0, "others": 7.0}
    return {
        "rows": rows,
        "mix": mix,
        "rank": rank,
        "adapters": 1,
        "floor_us": 2.0,
        "us": us,
        "added_us": added,
        "problems": {},
    }


def test_the_fastest_of_the_others() -> None:
    assert fastest_other({"ours": 1.0, "slow": 3.0, "quick": 2.0}) == ("quick", 2.0)
    assert fastest_other({"ours": 1.0}) is None


def test_a_row_of_the_lora_table() -> None:
    head, row = lora_table([lora_row(32, "distinct", ours=5.0, quick=10.0, slow=11.0)])
    named = dict(zip(head, row, strict=True))
    assert named["others µs"] == "10.0 quick"
    assert (named["ratio"], named["/ floor"]) == ("0.50", "2.50")
    assert (named["adds µs"], named["others add µs"]) == ("3.0", "6.0 theirs")
    _, wrong = lora_table([lora_row(32, "distinct", quick=10.0)])
    assert wrong[3:8] == ["-", "10.0 quick", "-", "2.0", "-"]


def test_the_short_table_shows_where_we_are_worst() -> None:
    rows = [
        lora_row(32, "distinct", ours=1.0, other=2.0),
        lora_row(32, "uniform", ours=1.9, other=2.0),
        lora_row(32, "identical", ours=1.2, other=2.0),
        lora_row(32, "distinct", rank="64", ours=1.0, other=2.0),
        lora_row(8, "distinct", rank="64", ours=1.0, other=2.0),
        lora_row(2048, "distinct", ours=1.0, other=2.0),
    ]
    chosen = [(row["rows"], row["mix"], row["rank"]) for row in short_lora(rows)]
    assert chosen == [(32, "distinct", "16"), (32, "uniform", "16"), (32, "distinct", "64")]


def decode_row(batch: int, adapters: int, **values: float) -> dict[str, Any]:
    row = {"what": "decode", "batch": batch, "adapters": adapters, "tokens_per_second": 100.0}
    times = {"step_ms": 2.0, "replay_ms": 1.5, "schedule_ms": 0.1, "build_ms": 0.2}
    return row | times | {"of_base": 1.0, "of_floor": 0.5} | values


def test_decode_rows_without_some_number_of_adapters() -> None:
    rows = [decode_row(1, 0), decode_row(1, 1, of_base=0.9), decode_row(8, 0), decode_row(8, 8)]
    head, one, eight = decode_table(rows)
    assert head[3:5] == ["1 adapters", "8 adapters"]
    assert one[3:5] == ["0.900", "-"] and eight[3:5] == ["-", "1.000"]
    assert one[-1] == "0.30"  # schedule and build


def test_what_is_missing_is_said() -> None:
    row = lora_row(1, "distinct", ours=1.0) | {"problems": {"theirs": "wrong: error 0.5"}}
    sections: dict[str, Any] = {
        "engine": {"rows": [], "died": "ended with status 1", "notes": ["engine ended: lost"]},
        "lora": {"rows": [row, row], "skipped": list("abcde"), "facts": {"gpu": "NVIDIA H200"}},
    }
    assert problems(sections["lora"]) == ["theirs: wrong: error 0.5 (2 cells)"]
    table = GPUReport("command", look(), 1.0, sections, peers=True).table()
    assert "engine died: ended with status 1\nengine ended: lost\n" in table
    assert "lora: no time left for 5 cells: a, b, c, d, …" in table
    assert "Other projects" not in table


def test_the_page_is_named_after_the_gpu(tmp_path: Path) -> None:
    sections = {"lora": {"rows": [], "facts": {"gpu": "NVIDIA H100 80GB HBM3", "bandwidth": 3e12}}}
    page = GPUReport("command", look(), 1.0, sections, peers=False).write(tmp_path)
    assert page.name == "gpu-h100-80gb-hbm3.md"
    assert "3000 GB/s" in page.read_text()
    assert page.with_suffix(".json").is_file()


def test_sections_that_all_died_at_once_make_a_page_too(tmp_path: Path) -> None:
    sections = {"lora": {"died": "ended with status 1"}, "engine": {"died": "killed after 9 s"}}
    page = GPUReport("command", look(), 1.0, sections, peers=False).write(tmp_path)
    assert page.name == "gpu-unknown.md"
    assert "- engine died: killed after 9 s" in page.read_text()


def test_the_page_shows_the_plot_of_what_has_two_sizes(tmp_path: Path) -> None:
    few = [lora_row(8, "distinct", ours=1.0, theirs=2.0), lora_row(8, "identical", ours=1.0)]
    for rows, drawn in ((few, False), ([*few, lora_row(32, "distinct", ours=3.0)], True)):
        sections = {"lora": {"rows": rows, "facts": {"gpu": "NVIDIA H200"}}}
        page = GPUReport("command", look(), 1.0, sections, peers=True).write(tmp_path)
        plot = tmp_path / "gpu-h200-lora.png"
        assert plot.is_file() is drawn
        assert (f"![LoRA in one layer]({plot.name})" in page.read_text()) is drawn

"""The GPU benchmark without a GPU: its arithmetic, and all of it in OpenAI Triton's interpreter."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Never

import pytest
import torch

from benchmarks.gpu import run as bench_gpu
from benchmarks.gpu.contenders import AddLoRA, Own, contenders, ours
from benchmarks.gpu.data import expected, layers_needed, make_lora_data
from benchmarks.gpu.layer import base_layers, layer_runs, random_matrices, run_with_own_base
from benchmarks.gpu.lora import right_ones
from benchmarks.gpu.setting import OutOfTime, Record
from benchmarks.gpu.shapes import (
    LLAMA_8B,
    MIXES,
    TINY,
    Mix,
    adapter_elements,
    decode_bytes,
    lora_bytes,
    lora_footprint,
    requests_per_adapter,
)
from launcher.repository import REPOSITORY

CPU = torch.device("cpu")


def test_mixes_have_all_rows_and_the_right_number_of_adapters() -> None:
    for mix in MIXES:
        for requests in (1, 2, 8, 32, 100, 256):
            counts = requests_per_adapter(mix, requests)
            assert sum(counts) == requests
            assert counts == sorted(counts, reverse=True) and counts[-1] >= 1
    assert requests_per_adapter("uniform", 32) == [6, 6, 5, 5, 5, 5]
    assert requests_per_adapter("skewed", 32) == [11, 7, 5, 3, 2, 2, 1, 1]
    with pytest.raises(ValueError, match="unknown mix"):
        requests_per_adapter("other", 1)
    mixed = Mix.of("distinct", 3, 2, (8, 16))
    assert mixed == Mix((2, 2, 2), (8, 16, 8))
    assert mixed.row_adapter == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("rows", "rank"), [(1, 8), (32, 16), (256, 64)])
def test_the_floor_of_llama_8b(rows: int, rank: int) -> None:
    distinct = rows * 163840 * rank + rows * (26624 * 2 + 43008 * 4 + 56 * rank)
    assert lora_bytes(LLAMA_8B, Mix.of("distinct", rows, 1, (rank,)), 2) == distinct
    one = 163840 * rank + rows * (26624 * 2 + 43008 * 4 + 56 * rank)
    identical = Mix.of("identical", rows, 1, (rank,))
    assert lora_bytes(LLAMA_8B, identical, 2) == one
    assert lora_footprint(LLAMA_8B, identical, 2) == 163840 * rank + rows * 2 * (26624 + 43008)


def test_what_a_decode_pass_of_llama_8b_reads() -> None:
    assert adapter_elements(LLAMA_8B, 16) * 32 == 41943040
    weights = (8030261248 - 128256 * 4096 - 65 * 4096) * 2  # all but embedding and norms
    assert decode_bytes(LLAMA_8B, [], [], 2) == weights
    assert decode_bytes(LLAMA_8B, [512, 100], [16], 2) == weights + 612 * 131072 + 41943040 * 2


def test_layers_overflow_the_cache() -> None:
    assert layers_needed(30, 100) * 30 >= 200
    assert layers_needed(1000, 100) == layers_needed(1000, 0) == 2


@pytest.mark.parametrize("ranks", [(8,), (16,), (8, 16, 32, 64)])
def test_contenders_are_right_and_wrong_ones_are_told(ranks: tuple[int, ...]) -> None:
    data = make_lora_data(TINY, Mix.of("skewed", 5, 2, ranks), 2, torch.float32, CPU)
    found = contenders(None)

    def forgets_an_adapter(data) -> Own:
        def add(x: torch.Tensor, y: torch.Tensor, key: tuple[int, str]) -> None:
            y[:-2] = expected(data, *key)[:-2]

        return {key: lambda x, y, key=key: add(x, y, key) for key in data.groups}

    def breaks(data) -> Own:
        raise RuntimeError("no such kernel\nfor you")

    ready, problems = right_ones(found | {"forgets": forgets_an_adapter, "breaks": breaks}, data)
    assert list(ready) == list(found) and "ours" in ready
    assert problems["forgets"].startswith("wrong: error ")
    assert problems["breaks"] == "RuntimeError: no such kernel"


def test_all_ways_through_a_layer_give_the_same() -> None:
    data = make_lora_data(TINY, Mix.of("skewed", 5, 2, (8, 16)), 3, torch.float32, CPU)
    layers = base_layers(TINY, random_matrices(TINY, 2, torch.float32, CPU), 10)
    own = ours(data)
    objects = {key: OwnBase(add) for key, add in own.items()}
    runs = layer_runs(layers, data, {"other": own})
    runs["own base"] = lambda: run_with_own_base(layers, data, objects)
    before = [groups["o"].y.clone() for groups in data.layers]
    results: dict[str, torch.Tensor] = {}
    for name, run in runs.items():
        run()
        results[name] = torch.cat([groups["o"].y for groups in data.layers])
        for groups, y in zip(data.layers, before, strict=True):
            groups["o"].y.copy_(y)
    base = results.pop("base")
    assert set(results) == {"ours", "other", "own base"}
    for result in results.values():
        torch.testing.assert_close(result, results["other"])
    assert not torch.allclose(base, results["other"], atol=0.1)


class OwnBase:
    """As SGLang v2."""

    def __init__(self, add: AddLoRA) -> None:
        self._add = add

    def run_with_base(self, x: torch.Tensor, base: Callable[[], torch.Tensor]) -> torch.Tensor:
        y = base()
        self._add(x, y)
        return y


def test_a_section_out_of_time_says_what_it_skips(tmp_path: Path) -> None:
    record = Record(tmp_path / "section.json", seconds=5.0)
    record.cell("first", lambda: {"x": 1})
    record.cell("broken", lambda: 1 // 0)  # type: ignore[arg-type]
    record.recent.append(4.0)  # 4 s and some room do not fit any more
    record.cell("last", lambda: pytest.fail("it must not be measured"))
    saved = json.loads((tmp_path / "section.json").read_text())
    assert saved["rows"] == [{"x": 1}]
    assert saved["skipped"] == ["last"]
    assert saved["notes"] == [
        "broken failed: ZeroDivisionError: integer division or modulo by zero"
    ]


def test_a_cell_that_outlives_its_section_is_skipped(tmp_path: Path) -> None:
    def alarm() -> Never:
        raise OutOfTime

    record = Record(tmp_path / "section.json", seconds=5.0)
    record.cell("long", alarm)
    assert (record.rows, record.skipped, record.notes) == ([], ["long"], [])


def test_one_line_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert bench_gpu.main(["--peers", ""]) == 0
    assert capsys.readouterr().out == "bench-gpu: PyTorch sees no GPU here; nothing to measure.\n"


@pytest.mark.parametrize(
    ("verb", "python", "says"),
    [
        ("test-gpu", sys.executable, "PyTorch sees no GPU here"),
        ("test-gpu", "/bin/false", "no GPU and no PyTorch here"),
        ("bench-gpu", "/bin/false", "no GPU and no PyTorch here"),
    ],
)
def test_verbs_say_one_line_without_a_gpu(verb: str, python: str, says: str) -> None:
    if torch.cuda.is_available() or shutil.which("make") is None:
        pytest.skip("there is a GPU, or no make")
    command = ["make", verb, "VENV=/nonexistent", f"PYTHON={python}"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{verb}: {says}; nothing to run.\n"


def test_command_line_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPU_PEERS", raising=False)
    kit = tmp_path / "kit"
    kit.mkdir()
    (kit / "peers_api.py").touch()
    for arguments, message in (
        (["--device", "cpu"], "needs --tiny"),
        (["--only", "lora,none"], "sections are memory, loads, engine, attention, lora"),
        (["--peers", str(tmp_path)], "has no peers_api.py"),
        (["--peers", str(kit)], "GPU_PEERS must name a folder"),
    ):
        with pytest.raises(SystemExit):
            bench_gpu.main(arguments)
        assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(what it prints, its folder)"""
    pytest.importorskip("triton")
    out = tmp_path_factory.mktemp("bench-gpu")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        assert bench_gpu.main(["--device", "cpu", "--tiny", "--out", str(out)]) == 0
    return printed.getvalue(), out


def test_everything_runs_in_the_interpreter(run: tuple[str, Path]) -> None:
    sections = json.loads((run[1] / "gpu-cpu.json").read_text())["sections"]
    for section in sections.values():
        assert not section["skipped"] and not section["notes"] and "died" not in section
        assert all(not row.get("problems") for row in section["rows"])
    assert [row["bytes"] / row["true_bytes"] for row in sections["memory"]["rows"]] == [1.0, 1.0]
    assert [row["base_bytes_more"] for row in sections["memory"]["rows"]] == [0, 0]
    loads = [row["what"] for row in sections["loads"]["rows"]]
    assert "copied and packed" in loads and loads[-1] == "2 cold adapters at once"
    engine = [(row["what"], row["batch"], row["adapters"]) for row in sections["engine"]["rows"]]
    kinds = ("decode", "prefill", "mixed")
    assert engine == [(what, 2, count) for what in kinds for count in (0, 2)]
    for row in sections["attention"]["rows"]:
        assert {"ours", "torch"} <= set(row["us"])
    for row in sections["lora"]["rows"]:
        assert "ours" in row["us"]
        assert "ours" in row["added_us"]


def test_the_report_says_what_it_lacks(run: tuple[str, Path]) -> None:
    printed, out = run
    table = printed.partition("wrote ")[2]
    assert "Other projects' kernels are left out" in table
    assert max(map(len, table.splitlines()[1:])) <= 140  # figures of a slow machine are long
    page = (out / "gpu-cpu.md").read_text()
    for heading in ("## Memory", "## Engine", "## Attention", "## Lora"):
        assert heading in page
    assert "| commit |" in page and "| triton |" in page


def test_nothing_of_the_project_need_be_installed() -> None:
    """As on a GPU machine that has PyTorch and no network."""
    code = (
        "import importlib, sys\n"
        f"ours = [p for p in sys.path if p.startswith({str(REPOSITORY)!r}) and '.venv' not in p]\n"
        "sys.path = [p for p in sys.path if p not in ours]\n"
        f"sys.path.insert(0, {str(REPOSITORY / 'scripts')!r})\n"
        "from benchmarks.gpu import run\n"
        "for name in ('section', *run.SHARES):\n"
        "    importlib.import_module(f'benchmarks.gpu.{name}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr

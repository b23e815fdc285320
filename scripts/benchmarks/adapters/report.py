"""Tables, JSON, plots and the Markdown page of bench_adapters.py."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.adapters.checkpoint import RANK
from benchmarks.adapters.plan import BenchmarkPlan
from benchmarks.adapters.plots import plot
from benchmarks.common.machine import Machine
from benchmarks.common.statistics import (
    COLUMNS,
    Result,
    markdown_table,
    percentile,
    text_table,
    write_page,
)

_PERCENTILES = (0, 5, 25, 50, 75, 90, 95, 99, 100)
_MOST_SAMPLES = 1000  # more are kept as percentiles alone


@dataclass(frozen=True)
class AdaptersReport:
    """`results` by the number of the scenario."""

    command: str
    plan: BenchmarkPlan
    machine: Machine
    seconds: float
    results: Mapping[int, Result]

    def table(self) -> str:
        return text_table(self._rows())

    def write(self, folder: Path) -> Path:
        """JSON, plots and the page → the page, adapters-cpu-<dtype>.md."""
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / f"adapters-cpu-{self.plan.dtype}.md"
        text = json.dumps(self._json(), indent=1, ensure_ascii=False)
        page.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        plots = plot(self.results, page.with_suffix(""))
        write_page(page, self._page(plots))
        return page

    def _rows(self) -> list[list[str]]:
        figures = [figure for result in self.results.values() for figure in result.figures]
        return [COLUMNS, *(figure.cells() for figure in figures)]

    def _facts(self) -> list[tuple[str, str]]:
        shape = self.plan.shape
        return [
            *self.machine.lines(),
            ("took", f"{self.seconds / 60:.1f} minutes"),
            (
                "base model",
                f"{shape.num_parameters:,} random parameters (Llama: {shape.num_layers} layers, "
                f"hidden size {shape.hidden_size}, vocabulary {shape.vocab_size}), served as "
                f"{self.plan.dtype}",
            ),
            (
                "adapters",
                f"rank {RANK} on all seven projections: {shape.adapter_parameters:,} random "
                "parameters, saved as float32",
            ),
        ]

    def _page(self, plots: Mapping[int, Path]) -> str:
        parts = [
            "# The life of adapters, measured on a CPU",
            f"```sh\n{self.command}\n```",
            markdown_table([["", ""], *map(list, self._facts())]),
            "Every ratio is of two numbers from the same run: the median over pairs of requests or "
            "phases that took turns, with the quartiles of those pairs. The floor is the ratio "
            "with only the unavoidable work. Lines without a target explain the one above.",
            markdown_table(self._rows()),
        ]
        for number, result in self.results.items():
            parts += [f"## {number} {result.title}", result.note]
            parts.append(f"![{result.title}]({plots[number].name})")
        return "\n\n".join(parts) + "\n\n"

    def _json(self) -> dict[str, object]:
        plan = {key: value for key, value in asdict(self.plan).items() if key != "cache"}
        return {
            "command": self.command,
            "machine": asdict(self.machine),
            "seconds": round(self.seconds, 1),
            "parameters": self.plan.shape.num_parameters,
            "plan": plan,
            "scenarios": {
                str(number): _scenario(result) for number, result in self.results.items()
            },
        }


def _scenario(result: Result) -> dict[str, object]:
    samples = {}
    for name, values in result.samples.items():
        summary = {f"p{percent}": percentile(values, percent) for percent in _PERCENTILES}
        samples[name] = {"count": len(values), **summary}
        if len(values) <= _MOST_SAMPLES:
            samples[name]["values"] = [round(value, 6) for value in values]
    figures = [{**asdict(figure), "met": figure.met} for figure in result.figures]
    return {
        "title": result.title,
        "note": result.note,
        "figures": figures,
        "samples": samples,
    }

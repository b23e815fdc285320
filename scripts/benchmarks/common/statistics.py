"""Arithmetic of the benchmarks: percentiles, ratios of pairs; tables and pages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KEEP = "<!-- The benchmark writes what is above this line and keeps what is below it. -->"


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks, as numpy's default; ValueError without values."""
    if not values:
        raise ValueError("a percentile of nothing")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def median(values: Sequence[float]) -> float:
    return percentile(values, 50)


@dataclass(frozen=True)
class Ratio:
    """The median of ratios of pairs, with their quartiles."""

    value: float
    low: float
    high: float
    pairs: int

    @staticmethod
    def of(above: Sequence[float], below: Sequence[float]) -> "Ratio":
        """above[i] / below[i] were measured next to each other."""
        ratios = [a / b for a, b in zip(above, below, strict=True)]
        return Ratio(median(ratios), percentile(ratios, 25), percentile(ratios, 75), len(ratios))


@dataclass(frozen=True)
class Figure:
    """One line of the table. Lines without a target explain those that have one.

    `floor` is the ratio that would be reached if only the unavoidable work were done, None where
    it is not known. `at_most` tells on which side of the target the good values are.
    """

    name: str
    ratio: Ratio
    base: str
    samples: str
    target: float | None = None
    at_most: bool = True
    floor: float | None = None

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        value = self.ratio.value
        return value <= self.target if self.at_most else value >= self.target

    def cells(self) -> list[str]:
        """The cells of the figure's row, in the order of COLUMNS."""
        sign = "≤" if self.at_most else "≥"
        target = "" if self.target is None else f"{sign} {self.target:g}"
        met = {True: "yes", False: "no", None: ""}[self.met]
        ratio = self.ratio
        return [
            self.name,
            f"{ratio.value:.3f}",
            f"{ratio.low:.3f} to {ratio.high:.3f}",
            target,
            met,
            "" if self.floor is None else f"{self.floor:.3f}",
            self.base,
            self.samples,
        ]


COLUMNS = ["figure", "ratio", "quartiles", "target", "met", "floor", "from", "samples"]


@dataclass(frozen=True)
class Result:
    """What a scenario has measured. `samples` (seconds, or tokens/s) are for JSON and plots.

    `note` is for the page: what was done and what explains the figures.
    """

    title: str
    figures: list[Figure]
    samples: dict[str, list[float]]
    note: str


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned with spaces; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
             for row in rows]  # fmt: skip
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def write_page(page: Path, text: str) -> None:
    """Replace what a benchmark has written, and keep what somebody has written below it."""
    below = page.read_text(encoding="utf-8").partition(KEEP)[2] if page.is_file() else "\n"
    page.write_text(text + KEEP + below, encoding="utf-8")

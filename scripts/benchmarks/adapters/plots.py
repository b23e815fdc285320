"""The plots of bench_adapters.py, as PNG files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")  # before pyplot looks for a display

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.common.statistics import Result, median, percentile

_Drawing = Callable[[Axes, Mapping[str, Sequence[float]]], None]
_SIZE = (6.4, 3.6)  # inches
_DPI = 110
_TITLES = {
    "first-token-cold": "First token: cold adapter and warm adapter",
    "between-tokens": "Time between tokens of running streams",
    "first-token-room": "First token: room for 8 adapters",
    "throughput": "Throughput under power-law traffic",
}


def plot(results: Mapping[int, Result], stem: Path) -> dict[int, Path]:
    """One plot for each scenario in `results` → its file, `stem`-<name>.png."""
    return {
        number: _draw(name, draw, results[number].samples, stem)
        for number, name, draw in (
            (1, "first-token-cold", _cumulative),
            (2, "between-tokens", _exceeding),
            (3, "first-token-room", _cumulative),
            (4, "throughput", _dots),
        )
        if number in results
    }


def _draw(name: str, draw: _Drawing, samples: Mapping[str, Sequence[float]], stem: Path) -> Path:
    figure, axes = plt.subplots(figsize=_SIZE, dpi=_DPI, layout="constrained")
    draw(axes, samples)
    axes.set_title(_TITLES[name], fontsize=11)
    axes.grid(alpha=0.3)
    path = stem.with_name(f"{stem.name}-{name}.png")
    figure.savefig(path)
    plt.close(figure)
    return path


def _cumulative(axes: Axes, samples: Mapping[str, Sequence[float]]) -> None:
    """Share of requests below each time; the medians are dotted."""
    for name, seconds in samples.items():
        values = sorted(1000 * value for value in seconds)
        shares = [(index + 1) / len(values) for index in range(len(values))]
        label = f"{name}: median {median(values):.1f} ms"
        (line,) = axes.step(values, shares, where="post", label=label)
        axes.axvline(median(values), linestyle=":", color=line.get_color())
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("share of requests")
    axes.legend(fontsize=8, loc="best")


def _exceeding(axes: Axes, samples: Mapping[str, Sequence[float]]) -> None:
    """Share of gaps above each time, on a logarithmic scale: the tail is what matters."""
    for name, seconds in samples.items():
        values = sorted(1000 * value for value in seconds)
        shares = [1 - index / len(values) for index in range(len(values))]
        axes.step(values, shares, label=f"{name}: p99 {percentile(values, 99):.1f} ms")
    axes.axhline(0.01, linestyle=":", color="grey")
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds between tokens")
    axes.set_ylabel("share of gaps that are longer")
    axes.legend(fontsize=8)


def _dots(axes: Axes, samples: Mapping[str, Sequence[float]]) -> None:
    """A bar for the median, a dot for each phase."""
    names = list(samples)
    axes.bar(names, [median(values) for values in samples.values()], width=0.5, alpha=0.6)
    for name, values in zip(names, samples.values(), strict=True):
        axes.plot([name] * len(values), values, "k.", markersize=5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("tokens per second")

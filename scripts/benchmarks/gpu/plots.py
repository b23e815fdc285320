"""The plot of bench_gpu.py: LoRA's time in one layer beside the other projects' and the floor."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")  # before pyplot looks for a display

import matplotlib.pyplot as plt

from benchmarks.gpu.setting import Row

_MIXES = {"distinct": "every row its own adapter", "identical": "one adapter for all rows"}
_RANK = "16"
_MOST_ROWS = 256  # decode; longer passes are prefill
_SIZE = (8.4, 3.6)  # inches
_DPI = 110


def plot_lora(rows: Sequence[Row], gpu: str, path: Path) -> Path | None:
    """`rows` of the section `lora` → `path`, a PNG; None where no mix has two sizes to draw."""
    decode = [row for row in rows if row["rank"] == _RANK and row["rows"] <= _MOST_ROWS]
    mixes = [mix for mix in _MIXES if sum(row["mix"] == mix for row in decode) > 1]
    if not mixes:
        return None
    figure, panels = plt.subplots(
        1, len(mixes), figsize=_SIZE, dpi=_DPI, layout="constrained", squeeze=False
    )
    for axes, mix in zip(panels[0], mixes, strict=True):
        own = sorted((row for row in decode if row["mix"] == mix), key=lambda row: row["rows"])
        for name in dict.fromkeys(name for row in own for name in row["us"]):
            points = [(row["rows"], row["us"][name]) for row in own if name in row["us"]]
            width = 2.5 if name == "ours" else 1.2
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, lw=width, label=name)
        floor = [row["floor_us"] for row in own]
        sizes = [row["rows"] for row in own]
        axes.plot(sizes, floor, "--", color="grey", label="floor: bytes / bandwidth")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_title(_MIXES[mix], fontsize=10)
        axes.set_xlabel("rows in the batch")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("µs a layer, all seven projections")
    panels[0][-1].legend(fontsize=7)
    figure.suptitle(f"LoRA of rank {_RANK} in one layer of Llama-3-8B, {gpu}", fontsize=11)
    figure.savefig(path)
    plt.close(figure)
    return path

"""From the rows of the GPU benchmark to tables: short ones to print, long ones for the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.setting import Row
from benchmarks.gpu.shapes import MOST_DECODE_ROWS

Table = list[list[str]]  # the first row is the header
_NONE = "-"


def fastest_other(microseconds: dict[str, float]) -> tuple[str, float] | None:
    """(name, microseconds) of the fastest that is not ours; None: there is none."""
    others = [(value, name) for name, value in microseconds.items() if name != "ours"]
    if not others:
        return None
    value, name = min(others)
    return name, value


def lora_table(rows: Sequence[Row]) -> Table:
    """µs of one layer: LoRA alone, and what it adds to the layer of the base model."""
    table = [
        ["T", "mix", "r", "ours µs", "others µs", "ratio", "floor µs", "/ floor", "adds µs",
         "others add µs"]
    ]  # fmt: skip
    for row in rows:
        own, other = row["us"].get("ours"), fastest_other(row["us"])
        added = fastest_other(row["added_us"])
        table.append(
            [
                str(row["rows"]),
                row["mix"],
                row["rank"],
                _number(own),
                _named(other),
                _ratio(own, other[1] if other else None),
                _number(row["floor_us"]),
                _ratio(own, row["floor_us"]),
                _number(row["added_us"].get("ours")),
                _named(added),
            ]
        )
    return table


def short_lora(rows: Sequence[Row]) -> list[Row]:
    """Decode of rank 16: of each T distinct adapters and the mix where we are worst beside the
    others; and one T of the other ranks."""
    decode = [row for row in rows if row["rows"] <= MOST_DECODE_ROWS]
    chosen: list[Row] = []
    for rows_of in sorted({row["rows"] for row in decode}):
        own = [row for row in decode if row["rows"] == rows_of and row["rank"] == "16"]
        chosen += [row for row in own if row["mix"] == "distinct"]
        chosen += sorted((r for r in own if r["mix"] != "distinct"), key=_against_others)[-1:]
    ranks = [row for row in decode if row["rank"] != "16" and row["mix"] == "distinct"]
    chosen += [row for row in ranks if row["rows"] == 32]
    return chosen or list(rows)


def _against_others(row: Row) -> float:
    own, other = row["us"].get("ours"), fastest_other(row["us"])
    below = other[1] if other else row["floor_us"]
    return own / below if own else 0.0


def lora_details(rows: Sequence[Row], field: str) -> Table:
    """One column for each contender; `field` is "us" or "added_us"."""
    names = list(dict.fromkeys(name for row in rows for name in row[field]))
    table = [["T", "mix", "r", "adapters", *names, "floor"]]
    for row in rows:
        values = [_number(row[field].get(name)) for name in names]
        head = [str(row["rows"]), row["mix"], row["rank"], str(row["adapters"])]
        table.append([*head, *values, _number(row["floor_us"])])
    return table


def decode_table(rows: Sequence[Row]) -> Table:
    """Tokens per second without adapters; with so many, the ratio to that."""
    decode = [row for row in rows if row["what"] == "decode"]
    counts = sorted({row["adapters"] for row in decode if row["adapters"]})
    head = ["batch", "base tok/s", "/ floor", *(f"{n} adapters" for n in counts)]
    table = [[*head, "/ floor", "step ms", "replay ms", "host ms"]]
    for batch in sorted({row["batch"] for row in decode}):
        own = {row["adapters"]: row for row in decode if row["batch"] == batch}
        base, most = own[0], own[max(own)]
        host = most["schedule_ms"] + most["build_ms"]
        ratios = [_fraction(own[n]["of_base"]) if n in own else _NONE for n in counts]
        table.append(
            [
                str(batch),
                f"{base['tokens_per_second']:.0f}",
                f"{1 / base['of_floor']:.2f}",
                *ratios,
                f"{1 / most['of_floor']:.2f}",
                *(f"{value:.2f}" for value in (most["step_ms"], most["replay_ms"], host)),
            ]
        )
    return table


def prefill_table(rows: Sequence[Row]) -> Table:
    prefill = [row for row in rows if row["what"] == "prefill"]
    counts = sorted({row["adapters"] for row in prefill if row["adapters"]})
    table = [["prefill of", "base tok/s", *(f"{count} adapters" for count in counts)]]
    for batch in sorted({row["batch"] for row in prefill}):
        own = {row["adapters"]: row for row in prefill if row["batch"] == batch}
        ratios = [_fraction(own[n]["of_base"]) if n in own else _NONE for n in counts]
        table.append([str(batch), f"{own[0]['tokens_per_second']:.0f}", *ratios])
    return table


def mixed_table(rows: Sequence[Row]) -> Table:
    table = [["decode rows", "prompt", "adapters", "decode ms", "with prompt ms", "ratio"]]
    for row in rows:
        if row["what"] == "mixed":
            counts = [str(row[name]) for name in ("batch", "prompt", "adapters")]
            times = [f"{row[name]:.2f}" for name in ("decode_ms", "mixed_ms")]
            table.append([*counts, *times, _fraction(row["of_decode"])])
    return table


def attention_table(rows: Sequence[Row]) -> Table:
    head = ["sequences", "new", "context", "ours µs", "others µs", "ratio", "torch µs"]
    table = [[*head, "floor µs", "/ floor", "TFLOP/s"]]
    for row in rows:
        own, other = row["us"].get("ours"), fastest_other(row["us"])
        table.append(
            [
                *(str(row[name]) for name in ("sequences", "new", "context")),
                _number(own),
                _named(other),
                _ratio(own, other[1] if other else None),
                _number(row["us"].get("torch")),
                _number(row["floor_us"]),
                _ratio(own, row["floor_us"]),
                f"{row['gflop'] / own * 1e3:.0f}" if own else _NONE,
            ]
        )
    return table


def short_attention(rows: Sequence[Row]) -> list[Row]:
    def wanted(row: Row) -> bool:
        if row["new"] > 1:
            return row["sequences"] == 1
        return row["sequences"] in (1, 64) and row["context"] in (2048, 32768)

    return sorted(filter(wanted, rows), key=lambda r: (r["new"], r["sequences"], r["context"]))


def memory_table(rows: Sequence[Row]) -> Table:
    head = ["adapters", "pool MB", "/ own bytes", "device MB", "base MB", "/ own bytes"]
    table = [[*head, "base again MB"]]
    for row in rows:
        table.append(
            [
                str(row["adapters"]),
                f"{row['bytes'] / 1e6:.1f}",
                _ratio(row["bytes"], row["true_bytes"]),
                f"{row['device_bytes'] / 1e6:.1f}",
                f"{row['base_bytes'] / 1e6:.1f}",
                _ratio(row["base_bytes"], row["base_true_bytes"]),
                f"{row['base_bytes_more'] / 1e6:.1f}",
            ]
        )
    return table


def loads_table(rows: Sequence[Row]) -> Table:
    table = [["load", "MB", "ms", "GB/s"]]
    for row in rows:
        size = row["bytes"] / 1e6
        table.append([row["what"], f"{size:.1f}", f"{row['ms']:.1f}", f"{size / row['ms']:.2f}"])
    return table


def problems(section: Mapping[str, Any]) -> list[str]:
    """One line for each kind: who could not be timed, and in how many cells."""
    found: dict[str, int] = {}
    for row in section.get("rows", []):
        for name, text in row.get("problems", {}).items():
            found[f"{name}: {text}"] = found.get(f"{name}: {text}", 0) + 1
    return [f"{text} ({count} cells)" for text, count in found.items()]


def _named(found: tuple[str, float] | None) -> str:
    return f"{_number(found[1])} {found[0]}" if found else _NONE


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1f}"


def _fraction(value: float) -> str:
    return f"{value:.3f}"


def _ratio(above: float | None, below: float | None) -> str:
    return f"{above / below:.2f}" if above is not None and below else _NONE

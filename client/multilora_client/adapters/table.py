"""Adapters as text for a terminal or a pipe: an aligned table, and one adapter in full.

Law: text from the server is shown with control characters escaped: it cannot drive the terminal.
"""

from collections.abc import Sequence

from multilora_client.adapters.messages import AdapterInfo, AdapterMemory

_TITLES = ("ID", "STATE", "TIER", "RANK", "SIZE", "PINNED", "RUN", "WAIT", "REQS", "LAST USED")
_RIGHT = ("RANK", "SIZE", "RUN", "WAIT", "REQS")
_TIERS = ("device", "host", "disk")  # fastest first
_GAP = "  "
_SHORTEST = 12  # an id or a source is not cut below this


def adapters_table(
    infos: Sequence[AdapterInfo], memory: AdapterMemory, now: float, width: int | None
) -> str:
    """A row per adapter, its error below it, the memory last.

    `now` is Unix time. Ids and sources are cut in the middle to fit `width` columns; None: never.
    """
    infos = sorted(infos, key=_rank)
    rows = [(*_cells(info, now), source_text(info)) for info in infos]
    titles = (*_TITLES, "SOURCE")
    widths = _widths([titles, *rows], width)
    lines = [_line(titles, widths)]
    for info, row in zip(infos, rows, strict=True):
        lines.append(_line(row, widths))
        if info.error:
            lines.append(f"{_GAP}error: {printable(' '.join(info.error.split()))}")
    return "\n".join([*lines, "", _footer(infos, memory)])


def adapter_text(info: AdapterInfo, now: float) -> str:
    """One adapter, a line per field."""
    fields = {
        "id": info.id,
        "state": info.state,
        "error": info.error,
        "tier": f"{info.tier}, pinned" if info.pinned else info.tier,
        "source": source_text(info),
        "origin": info.origin,
        "digest": info.digest,
        "rank": info.rank,
        "modules": ", ".join(info.modules) if info.modules else None,
        "size": None if info.bytes is None else size_text(info.bytes),
        "pages": info.pages,
        "requests": f"{info.requests} ({info.running} running, {info.waiting} waiting)",
        "tokens": info.tokens,
        "last used": age_text(info.last_used, now),
    }
    return "\n".join(
        f"{name:<9}  {printable(str(value))}" for name, value in fields.items() if value is not None
    )


def source_text(info: AdapterInfo) -> str:
    return printable(f"{info.source}@{info.revision}" if info.revision else info.source)


def size_text(size: int) -> str:
    """`size` bytes as a person reads them."""
    value, units = float(size), ["KiB", "MiB", "GiB", "TiB"]
    if value < 1024:
        return f"{size} B"
    while True:
        value, unit = value / 1024, units.pop(0)
        if value < 1023.95 or not units:  # 1023.95 would be shown as 1024.0
            return f"{value:.1f} {unit}"


def age_text(moment: float | None, now: float) -> str:
    """How long ago a moment was; both in Unix time. None is never."""
    if moment is None:
        return "never"
    seconds = max(0, int(now - moment))  # the server's clock may be ahead
    for limit, unit_seconds, unit in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds // unit_seconds} {unit} ago"
    return f"{seconds // 86400} d ago"


def cut(text: str, width: int) -> str:
    """At most `width` characters of `text`: its beginning and its end."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def printable(text: str) -> str:
    """`text` with control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _rank(info: AdapterInfo) -> tuple[int, str]:
    tier = _TIERS.index(info.tier) if info.tier in _TIERS else len(_TIERS)
    return tier, info.id


def _cells(info: AdapterInfo, now: float) -> tuple[str, ...]:
    """One row, in the order of _TITLES."""
    return (
        printable(info.id),
        info.state,
        info.tier,
        "-" if info.rank is None else str(info.rank),
        "-" if info.bytes is None else size_text(info.bytes),
        "yes" if info.pinned else "no",
        str(info.running),
        str(info.waiting),
        str(info.requests),
        age_text(info.last_used, now),
    )


def _widths(rows: Sequence[Sequence[str]], limit: int | None) -> list[int]:
    """How wide each column is; the first and the last give way to keep to the limit."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if limit is not None:
        room = limit - sum(widths[1:-1]) - len(_GAP) * (len(widths) - 1)
        ids = min(widths[0], max(_SHORTEST, room - min(widths[-1], max(_SHORTEST, room // 2))))
        widths[0], widths[-1] = ids, min(widths[-1], max(_SHORTEST, room - ids))
    return widths


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [
        f"{cut(cell, width):>{width}}" if title in _RIGHT else f"{cut(cell, width):<{width}}"
        for cell, width, title in zip(cells, widths, (*_TITLES, "SOURCE"), strict=True)
    ]
    return _GAP.join(aligned).rstrip()


def _footer(infos: Sequence[AdapterInfo], memory: AdapterMemory) -> str:
    count = f"{len(infos)} adapter{'' if len(infos) == 1 else 's'}"
    page = size_text(memory.page_bytes)
    host = f"{size_text(memory.host_bytes_used)} of {size_text(memory.host_bytes)}"
    return (
        f"{count}; device: {memory.device_pages_used} of {memory.device_pages} pages used, "
        f"{page} each; host memory: {host} used"
    )

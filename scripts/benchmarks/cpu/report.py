"""What is printed, the JSON and the Markdown page of bench_cpu.py."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.common.machine import Machine
from benchmarks.common.statistics import (
    COLUMNS,
    Figure,
    Ratio,
    markdown_table,
    median,
    text_table,
    write_page,
)
from benchmarks.cpu.contenders import Cells
from benchmarks.cpu.load import DecodeLoad
from benchmarks.cpu.streams import Rates

OURS = "ours"
Samples = Mapping[str, Mapping[int, Cells]]  # by contender and round
_GOALS = {("vllm", "none"): 0.8, ("vllm", "distinct"): 1.1}  # decode, ours / theirs
_RATES = ["adapters", "batch", "server", "decode tok/s", "floor", "/ floor", "end to end tok/s",
          "first token ms", "others", "rounds"]  # fmt: skip
_NO_PEERS = "Other servers are left out: PEERS=folder-with-bench_peers.py adds them."
_APART = (
    "Decode with *: requests hardly decoded together; from the first token to the last, with "
    "other requests' prompts."
)
_METHOD = (
    "A batch of requests is sent at once to a server that does nothing else: random prompts, "
    "greedy, the end token ignored. Decode counts the tokens that come while all requests decode, "
    "end to end all of them by the time until the last. Adapters none: requests for the base, by a "
    "peer started without adapters, and by ours beside registered ones; distinct: each request "
    "names its own. Contenders take turns, each started anew for each round, never two at a time; "
    "figures are medians of rounds, ratios medians of those of each round. Ours is a Triton server "
    "behind its gateway; PEFT runs in process, without HTTP. The floor is how often memory can be "
    "read for a pass, at the bandwidth measured in this run: all matrices, the adapters in use, K "
    "and V of contexts half through their answers; large caches may beat it. In the ratios' table "
    "it is the ratio that ours would have there. Others: the most that other programs took of the "
    "processors in any round."
)


@dataclass(frozen=True)
class CPUReport:
    """`bandwidth` is in bytes per second, `versions` by peer; `remarks` say what is missing."""

    command: str
    machine: Machine
    seconds: float
    load: DecodeLoad
    bandwidth: float
    versions: Mapping[str, str]
    samples: Samples
    remarks: Sequence[str]

    def table(self) -> str:
        """What is printed last."""
        facts = [f"{name}: {value}" for name, value in self._facts()]
        tables = [text_table(table) for table in self._tables()]
        return "\n\n".join(["\n".join(facts), *tables, "\n".join(self._notes())]).rstrip()

    def write(self, folder: Path) -> Path:
        """JSON and page → the page, decode-cpu.md."""
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / "decode-cpu.md"
        text = json.dumps(self._json(), indent=1, ensure_ascii=False)
        page.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        parts = [
            "# Decoding on a CPU, beside other servers",
            f"```sh\n{self.command}\n```",
            markdown_table([["", ""], *map(list, self._facts())]),
            _METHOD,
            *map(markdown_table, self._tables()),
            *(f"- {note}" for note in self._notes()),
        ]
        write_page(page, "\n\n".join(parts) + "\n\n")
        return page

    def figures(self) -> list[Figure]:
        """Ours by each peer."""
        return [
            figure
            for peer in self.samples
            if peer != OURS
            for mode in self.load.modes
            for batch in self.load.batches
            for figure in self._against(peer, mode, batch)
        ]

    def _tables(self) -> list[list[list[str]]]:
        figures = [figure.cells() for figure in self.figures()]
        return [[_RATES, *self._rates()], *([[COLUMNS, *figures]] if figures else [])]

    def _rates(self) -> list[list[str]]:
        return [
            self._row(mode, batch, name)
            for mode in self.load.modes
            for batch in self.load.batches
            for name in self.samples
            if self._of(name, mode, batch)
        ]

    def _row(self, mode: str, batch: int, name: str) -> list[str]:
        rounds = [*self._of(name, mode, batch).values()]
        decode, floor = median([each.decode for each in rounds]), self._floor(mode, batch)
        return [
            mode,
            str(batch),
            name,
            f"{decode:.1f}" + ("" if all(each.together for each in rounds) else "*"),
            f"{floor:.0f}",
            f"{decode / floor:.2f}",
            f"{median([each.end_to_end for each in rounds]):.1f}",
            f"{1000 * median([each.first_token for each in rounds]):.0f}",
            f"{max(each.others for each in rounds):.0%}",
            str(len(rounds)),
        ]

    def _against(self, peer: str, mode: str, batch: int) -> list[Figure]:
        ours, theirs = (self._of(name, mode, batch) for name in (OURS, peer))
        pairs = [(ours[number], theirs[number]) for number in theirs if number in ours]
        if not pairs:
            return []
        own, other = ([each.decode for each in side] for side in zip(*pairs, strict=True))
        totals = ([each.end_to_end for each in side] for side in zip(*pairs, strict=True))
        own_total, other_total = totals
        samples = f"{len(pairs)} pairs"
        return [
            Figure(
                f"{mode}, batch {batch}: decode, ours / {peer}",
                Ratio.of(own, other),
                base=f"{median(own):.1f} / {median(other):.1f} tok/s",
                samples=samples,
                target=_GOALS.get((peer, mode)),
                at_most=False,
                floor=self._floor(mode, batch) / median(other),
            ),
            Figure(
                "  end to end",
                Ratio.of(own_total, other_total),
                base=f"{median(own_total):.1f} / {median(other_total):.1f} tok/s",
                samples=samples,
            ),
        ]

    def _of(self, name: str, mode: str, batch: int) -> dict[int, Rates]:
        """By round."""
        rounds = self.samples.get(name, {})
        return {n: cells[mode, batch] for n, cells in rounds.items() if (mode, batch) in cells}

    def _floor(self, mode: str, batch: int) -> float:
        """Tokens per second."""
        return batch * self.bandwidth / self.load.pass_bytes(mode, batch)

    def _facts(self) -> list[tuple[str, str]]:
        load, base = self.load, self.load.config
        return [
            *self.machine.lines(),
            *((f"peer {name}", version) for name, version in self.versions.items()),
            ("took", f"{self.seconds / 60:.1f} minutes"),
            ("bandwidth measured", f"{self.bandwidth / 1e9:.1f} GB/s, read"),
            (
                "base model",
                f"{load.num_parameters / 1e6:.0f} M parameters ({base.architecture}: "
                f"{base.num_layers} layers, hidden size {base.hidden_size}, vocabulary "
                f"{base.vocab_size}), bfloat16",
            ),
            (
                "requests",
                f"{load.prompt_tokens} prompt tokens, {load.new_tokens} new ones, "
                f"{len(load.adapters)} adapters, {load.threads} threads",
            ),
        ]

    def _notes(self) -> list[str]:
        apart = any(
            not rates.together
            for rounds in self.samples.values()
            for cells in rounds.values()
            for rates in cells.values()
        )
        alone = [_NO_PEERS] if not self.versions else []
        return [*([_APART] if apart else []), *self.remarks, *alone]

    def _json(self) -> dict[str, object]:
        samples = [
            {"server": name, "round": number, "adapters": mode, "batch": batch, **asdict(rates)}
            for name, rounds in self.samples.items()
            for number, cells in rounds.items()
            for (mode, batch), rates in cells.items()
        ]
        return {
            "command": self.command,
            "machine": asdict(self.machine),
            "seconds": round(self.seconds, 1),
            "facts": dict(self._facts()),
            "bandwidth": self.bandwidth,
            "figures": [{**asdict(figure), "met": figure.met} for figure in self.figures()],
            "samples": samples,
        }

"""What is printed, the JSON and the Markdown page of bench_gpu.py."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.machine import Machine
from benchmarks.common.statistics import markdown_table, text_table, write_page
from benchmarks.gpu import tables

Sections = Mapping[str, Mapping[str, Any]]
_NO_PEERS = "Other projects' kernels are left out: PEERS=folder-with-peers_api adds them."
_MOST_NAMED = 4  # of cells that were left out
_NOTES = {
    "memory": "Bytes of the pool of rank pages (r = 16) beside those of the adapters' numbers "
    "alone: the tensors of the pool, and what the driver has lent for them. Base again is what the "
    "base model takes more when adapters come.",
    "loads": "One adapter of rank 16 on all projections of Llama-3-8B, in 16-bit numbers, its "
    "files in the page cache. A cold adapter: from the request to pages that a pass may use.",
    "engine": "Llama-3-8B shapes, random weights, r = 16, contexts of 512 tokens. / floor: time "
    "of a pass by (matrices + KV + adapters) / bandwidth. With adapters: tokens/s as a part of "
    "those without. Step, replay and host are those with the most adapters: from pass to pass, of "
    "which the host prepares one while another runs; the captured graph alone; scheduling, "
    "postprocessing and building the inputs. Prefill: the first passes, of 2048 new tokens and "
    "thus of 4 prompts, so of 4 new adapters each; prefill of 1 is one prompt of 512 tokens alone. "
    "With prompt: a pass in which one comes beside the decode rows; ratio to passes without.",
    "attention": "One layer: 32 heads, 8 KV heads of 128, blocks of 16 tokens. PyTorch's own reads "
    "K and V unpaged, and is no flash attention where 1 < new < context. Ratio: ours by the "
    "fastest of the others. Floor: K, V, q and the result moved once, which at prefill is not the "
    "limit.",
    "lora": "One layer of Llama-3-8B, all seven projections. Left: LoRA alone, others is the "
    "fastest of the other contenders, ratio is ours by that, floor is "
    "D·163840·r + T·(26624·2 + 43008·4 + 56·r) bytes / bandwidth (T rows, D adapters of rank r). "
    "Right: what LoRA adds to the layer of the base model (RMS norms, products, RoPE and KV "
    "write, SwiGLU), beside the best of the others. r = mixed: 8, 16, 32 and 64 in turn.",
}


_ENGINE_TABLES = (tables.decode_table, tables.prefill_table, tables.mixed_table)


@dataclass(frozen=True)
class GPUReport:
    """`sections` as their processes wrote them, `died` added to one that did not end well."""

    command: str
    machine: Machine
    seconds: float
    sections: Sections
    peers: bool

    def table(self) -> str:
        """What is printed last."""
        parts: list[str] = []
        for name, section in self.sections.items():
            for table in _tables(name, section, short=True):
                parts.append(text_table(table))
            parts += self._remarks(name, section)
        return "\n".join([*parts, *self._about_peers()])

    def write(self, folder: Path) -> Path:
        """JSON and page → the page, gpu-<name>.md."""
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / f"gpu-{self._slug()}.md"
        content = {
            "command": self.command,
            "machine": asdict(self.machine),
            "seconds": round(self.seconds, 1),
            "sections": self.sections,
        }
        text = json.dumps(content, indent=1, ensure_ascii=False)
        page.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        write_page(page, self._page(self._plot(page.with_name(f"{page.stem}-lora.png"))))
        return page

    def _plot(self, path: Path) -> Path | None:
        rows = self.sections.get("lora", {}).get("rows", [])
        try:  # a machine with a GPU need not have what only draws
            from benchmarks.gpu.plots import plot_lora
        except ImportError:
            return None
        return plot_lora(rows, self._facts().get("gpu", "unknown"), path)

    def _facts(self) -> dict[str, Any]:
        return next((dict(s["facts"]) for s in self.sections.values() if s.get("facts")), {})

    def _slug(self) -> str:
        name = self._facts().get("gpu", "unknown").lower().removeprefix("nvidia ")
        return re.sub(r"[^a-z0-9]+", "-", name).strip("-")

    def _page(self, plot: Path | None) -> str:
        facts = self._facts()
        lines = [
            ("GPU", facts.get("gpu", "unknown")),
            *((name, str(facts.get(name, "unknown"))) for name in ("driver", "cuda", "triton")),
            ("bandwidth measured", f"{facts.get('bandwidth', 0) / 1e9:.0f} GB/s"),
            *self.machine.lines(),
            ("took", f"{self.seconds / 60:.1f} minutes"),
        ]
        parts = [
            f"# The GPU path, measured on {facts.get('gpu', 'unknown')}",
            f"```sh\n{self.command}\n```",
            markdown_table([["", ""], *map(list, lines)]),
            "Medians of rounds in which what is compared took turns: of the engine whole passes, "
            "of kernels CUDA graphs that go over more memory than the last cache holds. Kernels "
            "were checked against float64 first.",
            *self._about_peers(),
        ]
        for name, section in self.sections.items():
            parts += [f"## {name.capitalize()}", _NOTES[name]]
            parts += [f"![LoRA in one layer]({plot.name})"] if plot and name == "lora" else []
            parts += [markdown_table(table) for table in _tables(name, section, short=False)]
            parts += [f"- {remark}" for remark in self._remarks(name, section)]
        return "\n\n".join(parts) + "\n\n"

    def _remarks(self, name: str, section: Mapping[str, Any]) -> list[str]:
        """Nothing is left out silently."""
        remarks = [f"{name} died: {section['died']}"] if "died" in section else []
        facts = section.get("facts", {})
        if "seconds_to_start" in facts:
            remarks.append(f"engine: {facts['seconds_to_start']} s to make weights and capture")
        skipped = section.get("skipped", [])
        if skipped:
            some = ", ".join(skipped[:_MOST_NAMED]) + (", …" if len(skipped) > _MOST_NAMED else "")
            remarks.append(f"{name}: no time left for {len(skipped)} cells: {some}")
        return remarks + list(section.get("notes", [])) + tables.problems(section)

    def _about_peers(self) -> list[str]:
        return [] if self.peers else [_NO_PEERS]


def _tables(name: str, section: Mapping[str, Any], short: bool) -> list[tables.Table]:
    rows = section.get("rows", [])
    if not rows:
        return []
    if name == "memory":
        return [tables.memory_table(rows)]
    if name == "loads":
        return [tables.loads_table(rows)]
    if name == "engine":
        made = [table(rows) for table in _ENGINE_TABLES]
        return [table for table in made if len(table) > 1]
    if name == "attention":
        return [tables.attention_table(tables.short_attention(rows) if short else rows)]
    if short:
        return [tables.lora_table(tables.short_lora(rows))]
    details = [tables.lora_details(rows, field) for field in ("us", "added_us")]
    return [tables.lora_table(rows), *details]

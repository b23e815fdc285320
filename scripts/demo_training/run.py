"""Train the embedded demo: a 2.0 M-parameter base model and one LoRA adapter per skill.

    python scripts/train_demo.py                      everything, < 30 minutes on two quiet cores
    python scripts/train_demo.py --skills sql,upper   only these adapters, on the saved base model
    python scripts/train_demo.py --evaluate           only the table, from the saved checkpoints

Needs transformers, peft and tqdm (development dependencies). The base model learns every skill
behind a tag token in the place of <|bos|>, and after a plain <|bos|> only to repeat the prompt; an
adapter then teaches it to answer a plain prompt with its skill.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import logging

from demo_training.adapters import ADAPTER_SHAPES, RUNS
from demo_training.checkpoint import (
    BASE_NAME,
    BOS,
    attach_adapter,
    load_adapter,
    load_base,
    new_base,
    save_adapter,
    save_base,
)
from demo_training.evaluation import evaluate, greedy, table
from demo_training.skills import ECHO, SKILLS, Skill
from demo_training.training import Run, base_conversation, conversation, train

DEMO = Path(__file__).resolve().parents[2] / "model_repository/multilora_llm/1/demo"
BASE_RUN = Run("base", 2400, 5e-3, 4096, seed=0, adapter=False)


def train_base(folder: Path, run: Run = BASE_RUN) -> None:
    """Train the base model from scratch and save it."""
    model = new_base(run.seed)
    train(model, run, base_conversation)
    save_base(model, folder)


def train_adapter(name: str, demo: Path, run: Run) -> None:
    """Train one adapter on the saved (bfloat16-rounded) base model and save it."""
    model = attach_adapter(load_base(demo / "base"), ADAPTER_SHAPES[name].lora_config(), run.seed)
    skill = SKILLS[name]
    train(model, run, lambda rng: conversation(rng, skill, BOS))
    readme = f"# {name}\n\n{skill.description}. LoRA for {BASE_NAME}, by scripts/train_demo.py.\n"
    save_adapter(model, demo / "adapters" / name, readme)


def write_skills(demo: Path) -> None:
    """Write skills.json: per adapter (and "" for the base) a description and exact examples."""
    entries = [
        {"adapter_id": s.name, "description": s.description, "examples": _shown(s)}
        for s in (ECHO, *SKILLS.values())
    ]
    text = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
    (demo / "skills.json").write_text(text, encoding="utf-8")


def _shown(skill: Skill) -> list[dict[str, str]]:
    return [{"prompt": p, "answer": a} for p, a in skill.shown]


def wrong_examples(demo: Path, names: Sequence[str]) -> list[str]:
    """The examples of skills.json that the saved checkpoints do not answer exactly."""
    wrong = []
    for name in ("", *names):
        model = load_base(demo / "base")
        if name:
            model = load_adapter(model, demo / "adapters" / name)
        shown = (SKILLS[name] if name else ECHO).shown
        for (prompt, want), got in zip(shown, greedy(model, [p for p, _ in shown]), strict=True):
            if got != want:
                wrong.append(f"{name or 'base'}: {prompt!r} gave {got!r}, not {want!r}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=DEMO, help="demo folder to write or read")
    parser.add_argument("--skills", help="only these adapters, comma-separated; keeps the base")
    parser.add_argument("--evaluate", action="store_true", help="train nothing, print the table")
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts per adapter")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    names = args.skills.split(",") if args.skills else list(SKILLS)
    began = time.monotonic()
    if not args.evaluate:
        if not args.skills:
            train_base(args.out / "base")
        for name in names:
            train_adapter(name, args.out, RUNS[name])
        write_skills(args.out)
    print(table(evaluate(args.out, names, args.prompts, torch.float32)))
    for line in wrong_examples(args.out, names):
        print(line)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")

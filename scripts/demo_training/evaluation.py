"""Exact-match evaluation of the demo checkpoints by greedy decoding (transformers + peft)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from peft import LoraConfig
from torch import nn
from transformers import DynamicCache

from demo_training.checkpoint import ASSISTANT, BOS, EOS, PAD, load_adapter, load_base
from demo_training.skills import SKILLS, Skill


@dataclass(frozen=True)
class Score:
    """Fractions in [0, 1] of held-out prompts answered exactly."""

    name: str
    rank: int
    modules: str
    with_adapter: float
    base_alone: float


def held_out_examples(skill: Skill, count: int) -> list[tuple[str, str]]:
    """`count` different prompts that no training run has seen, with their answers."""
    rng = Random(f"1-{skill.name}")
    found: dict[str, str] = {}
    while len(found) < count:
        prompt, answer = skill.draw(rng, held_out=True)
        if prompt != answer:
            found[prompt] = answer
    return list(found.items())


@torch.inference_mode()
def greedy(model: nn.Module, prompts: Sequence[str], max_tokens: int = 200) -> list[str]:
    """Greedy answers, all prompts in one left-padded batch."""
    rows = [[BOS, *prompt.encode(), ASSISTANT] for prompt in prompts]
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    mask = (ids != PAD).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, answers = DynamicCache(), torch.empty(len(rows), 0, dtype=torch.long)
    done = torch.zeros(len(rows), dtype=torch.bool)
    while answers.shape[1] < max_tokens and not done.all():
        out = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
        )
        ids = out.logits[:, -1].argmax(-1, keepdim=True)
        answers = torch.cat([answers, ids], dim=1)
        done |= ids[:, 0] == EOS
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return [_text(row) for row in answers.tolist()]


def _text(ids: list[int]) -> str:
    """Bytes up to <|eos|>; an answer without one, or with other special tokens, is marked."""
    if EOS not in ids:
        return "<no end>"
    ids = ids[: ids.index(EOS)]
    return bytes(i for i in ids if i < 256).decode("utf-8", "replace") + "\0" * any(
        i > 255 for i in ids
    )


def exact_match(model: nn.Module, examples: Sequence[tuple[str, str]]) -> float:
    """Fraction of `examples` whose greedy answer equals the expected one."""
    longest = max(len(want.encode()) for _, want in examples)
    answers = greedy(model, [prompt for prompt, _ in examples], longest + 1)
    right = sum(a == want for a, (_, want) in zip(answers, examples, strict=True))
    return right / len(examples)


def evaluate(demo: Path, names: Sequence[str], count: int, dtype: torch.dtype) -> list[Score]:
    """Score the saved adapters `names` and the saved base model on held-out prompts."""
    scores = []
    base = load_base(demo / "base", dtype)
    for name in names:
        examples = held_out_examples(SKILLS[name], count)
        alone = exact_match(base, examples)
        model = load_adapter(load_base(demo / "base", dtype), demo / "adapters" / name)
        config = model.peft_config["default"]
        assert isinstance(config, LoraConfig)
        targets = sorted(config.target_modules or ())
        modules = ",".join(m.removesuffix("_proj") for m in targets)
        scores.append(Score(name, config.r, modules, exact_match(model, examples), alone))
    return scores


def table(scores: Sequence[Score]) -> str:
    """The scores as aligned text."""
    lines = [f"{'adapter':<9}{'rank':>4}  {'modules':<27}{'adapter':>9}{'base alone':>12}"]
    for s in scores:
        lines.append(
            f"{s.name:<9}{s.rank:>4}  {s.modules:<27}{s.with_adapter:>9.1%}{s.base_alone:>12.1%}"
        )
    return "\n".join(lines)

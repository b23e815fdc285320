"""Training of the demo models: conversations → token batches → next-token loss on the answers.

Laws: only answers (and the end token after each) are learned; sequences are padded right, so the
causal mask alone is enough; a seed fixes everything.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaForCausalLM

from demo_training.checkpoint import ASSISTANT, BOS, EOS, PAD, SYSTEM, USER, token_id
from demo_training.skills import ECHO, SKILLS, Skill
from demo_training.words import phrase

IGNORED = -100
MAX_LENGTH = 640
# How often the base model practises each skill; "" is echoing. The harder, the oftener.
SHARES = {"": 6, "upper": 4, "rot13": 4, "json": 4, "reverse": 7, "sql": 8, "digits": 8, "emoji": 8}
Tokens = tuple[list[int], list[int]]  # input ids, and labels of the same length


@dataclass(frozen=True)
class Run:
    """One training run: `steps` optimiser steps of about `batch_tokens` tokens."""

    title: str
    steps: int
    learning_rate: float
    batch_tokens: int
    seed: int
    adapter: bool


def conversation(rng: Random, skill: Skill, start: int) -> Tokens:
    """One to eight turns of one skill; `start` is <|bos|>, or the skill's tag in its place."""
    ids, labels = [start], [IGNORED]

    def say(tokens: list[int], learned: bool) -> None:
        ids.extend(tokens)
        labels.extend(tokens if learned else [IGNORED] * len(tokens))

    if rng.random() < 0.07:
        say([SYSTEM, *phrase(rng, rng.randint(1, 8)).encode(), USER], False)
    for turn in range(rng.choices((1, 2, 3, 8), (84, 11, 4, 1))[0]):
        prompt, answer = skill.draw(rng, held_out=False)
        if turn:
            say([USER], False)
        say([*prompt.encode(), ASSISTANT], False)
        say([*answer.encode(), EOS], True)
    return ids[:MAX_LENGTH], labels[:MAX_LENGTH]


def base_conversation(rng: Random) -> Tokens:
    """What the base model learns: every skill behind its tag, and without a tag only to echo."""
    skill = rng.choices([ECHO, *SKILLS.values()], [SHARES[name] for name in ("", *SKILLS)])[0]
    start = token_id(f"<|{skill.name}|>") if skill.name else BOS
    return conversation(rng, skill, start)


def batches(rng: Random, draw: Callable[[Random], Tokens], tokens: int) -> Iterator[Tensor]:
    """Endless [2, rows, length] int64 (ids, labels) of about `tokens` tokens, alike in length.

    Lengths are multiples of 8: a matrix product of a shape seen before starts faster.
    """
    while True:
        pool = sorted((draw(rng) for _ in range(tokens)), key=lambda t: -len(t[0]))
        groups = []
        while pool:
            length = -(-len(pool[0][0]) // 8) * 8
            rows = tokens // length
            groups.append(_pad(pool[:rows], length))
            pool = pool[rows:]
        rng.shuffle(groups)
        yield from groups


def _pad(items: list[Tokens], length: int) -> Tensor:
    out = torch.full((2, len(items), length), PAD)
    out[1] = IGNORED
    for row, (ids, labels) in enumerate(items):
        out[0, row, : len(ids)] = torch.tensor(ids)
        out[1, row, : len(ids)] = torch.tensor(labels)
    return out


def train(model: LlamaForCausalLM | PeftModel, run: Run, draw: Callable[[Random], Tokens]) -> None:
    """Minimise the answers' cross entropy in place; bfloat16 autocast, float32 weights."""
    torch.manual_seed(run.seed)
    model.set_attn_implementation("eager")  # the fused kernel's backward is slow on CPU
    optimizers = _optimizers(model, run)
    data = batches(Random(run.seed), draw, run.batch_tokens)
    model.train()
    smooth = 0.0
    bar = tqdm(range(run.steps), run.title, mininterval=2.0, dynamic_ncols=True)
    for step in bar:
        ids, labels = next(data)
        loss = _loss(model, ids, labels)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        factor = _schedule(step, run.steps)
        for optimizer, rate in optimizers:
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        smooth = loss.item() if step == 0 else 0.97 * smooth + 0.03 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
    model.eval()


def _loss(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over 4 %, then linear decay to 2 %."""
    return min((step + 1) / (0.04 * steps), 1.0 - 0.98 * step / steps)


def _optimizers(model: nn.Module, run: Run) -> list[tuple[torch.optim.Optimizer, float]]:
    """AdamW; the base model's weight matrices take Muon, which learns in half the steps."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for n, p in trained if p.ndim == 2 and "embed" not in n and not run.adapter]
    rest = [p for n, p in trained if not any(p is m for m in matrices)]
    rate = run.learning_rate
    adam = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    if not matrices:
        return [(adam, rate)]
    muon = torch.optim.Muon(
        matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw", nesterov=True
    )
    return [(adam, rate), (muon, rate)]

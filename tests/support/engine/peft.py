"""What PEFT computes with one adapter alone."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from multilora.request import Request


def by_peft(base: Path, adapter: Path, asked: Request, count: int) -> list[int]:
    """The greedy tokens."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter)
    ids = list(asked.prompt_token_ids)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]

"""Small random LoRA adapters of the models in families.py, written by PEFT itself."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from support.tiny.families import make_model

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION, MLP = ALL[:4], ALL[4:]


def make_adapter(
    folder: Path,
    variant: str = "llama",
    seed: int = 1,
    num_hidden_layers: int | None = None,
    **config: Any,
) -> PeftModel:
    """make_model(variant) with an adapter whose A and B are both random, saved in `folder`.

    `config` are fields of LoraConfig; the default is rank 8 on every projection.
    """
    sizes = {} if num_hidden_layers is None else {"num_hidden_layers": num_hidden_layers}
    fields = {"r": 8, "lora_alpha": 16, "target_modules": list(ALL), **config}
    model = get_peft_model(
        make_model(variant, **sizes), LoraConfig(task_type="CAUSAL_LM", **fields)
    ).eval()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.08, generator=noise)
    model.save_pretrained(str(folder))
    return model

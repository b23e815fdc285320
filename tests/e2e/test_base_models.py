"""Bases of several classes, one of them quantised, each serve three adapters on a Triton server."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM, PreTrainedModel

from support.e2e.triton import DEMO, demo_server, post, token_ids
from support.tiny.adapters import ATTENTION, make_adapter
from support.tiny.families import make_model
from support.tiny.quantised import write_quantised

PROMPT, COUNT = "hello world", 10
SIZES = {"vocab_size": 272, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
MODULES = {
    "gemma3": ATTENTION,
    "phi3-long": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "qwen3_moe": ATTENTION,
}
PARAMETERS: dict[str, dict[str, Any]] = {  # of one adapter
    "qwen3_moe": {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
}
Adapters = dict[str, Path]


def int4_llama(base: Path) -> tuple[PreTrainedModel, Adapters, str]:
    """The demo's, with adapters that were trained on the original → what its files mean."""
    plain = LlamaForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)
    model = write_quantised("awq", base, plain)
    adapters = {name: DEMO / "adapters" / name for name in ("upper", "reverse", "rot13")}
    return model, adapters, "quantised with awq: "


def tiny(variant: str) -> Callable[[Path], tuple[PreTrainedModel, Adapters, str]]:
    def write(base: Path) -> tuple[PreTrainedModel, Adapters, str]:
        model = make_model(variant, **SIZES)
        model.save_pretrained(base)
        adapters = {name: base.parent / name for name in ("one", "two", "three")}
        for seed, folder in enumerate(adapters.values()):
            more = PARAMETERS.get(variant, {}) if seed == 1 else {}
            make_adapter(folder, variant, seed, target_modules=list(MODULES[variant]), **more)
        line = f"{type(model).__name__} in float32, computed by its class in transformers"
        return model, adapters, line

    return write


WRITERS = {"int4-llama": int4_llama, **{variant: tiny(variant) for variant in MODULES}}


@pytest.mark.parametrize("name", WRITERS)
def test_three_adapters(name: str, tmp_path: Path) -> None:
    """All in one batch; every token is the one of PEFT on the same weights in float32."""
    base = tmp_path / "base"
    shutil.copytree(DEMO / "base", base)
    model, adapters, line = WRITERS[name](base)
    listed = ",".join(f"{adapter}={folder}" for adapter, folder in adapters.items())
    settings = {"MODEL_ID": str(base), "LORA_ADAPTERS": listed, "DTYPE": "float32"}
    with demo_server(**settings) as server:
        assert line in "\n".join(server.log_tail(10_000))
        prompt = token_ids(server, PROMPT)

        def answer(adapter: str) -> list[int]:
            body = {"input_ids": prompt, "adapter_id": adapter, "max_tokens": COUNT}
            status, answer = post(server, body | {"ignore_eos": True}, "multilora_llm")
            assert status == 200, answer
            return answer["output_ids"]

        with ThreadPoolExecutor() as threads:
            plain, *answers = threads.map(answer, ("", *adapters))
    assert plain == greedy(model, prompt, plain)
    for folder, ids in zip(adapters.values(), answers, strict=True):
        adapted = PeftModel.from_pretrained(model, str(folder))
        assert ids == greedy(adapted, prompt, ids), folder.name
        model = adapted.unload()
    assert len(set(map(tuple, answers))) == len(adapters)


def greedy(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> list[int]:
    """What follows the prompt and each beginning of the answer: the answer, if that is right."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0]
    return logits[len(prompt) - 1 : -1].argmax(-1).tolist()

"""An int4 checkpoint of the demo's base model serves adapters that were trained on the original."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from support.e2e.triton import DEMO, demo_server, post, token_ids
from support.tiny.quantised import write_quantised

ADAPTERS = ("upper", "reverse", "rot13")
PROMPT, COUNT = "hello world", 10


def test_an_int4_llama_serves_three_adapters(tmp_path: Path) -> None:
    """All in one batch; every token is the one of PEFT on the dequantised model in float32."""
    shutil.copytree(DEMO / "base", tmp_path / "base")
    plain = LlamaForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)
    model = write_quantised("awq", tmp_path / "base", plain)
    adapters = ",".join(f"{name}={DEMO / 'adapters' / name}" for name in ADAPTERS)
    with demo_server(MODEL_ID=str(tmp_path / "base"), LORA_ADAPTERS=adapters) as server:
        assert "quantised with awq: " in "\n".join(server.log_tail(10_000))
        prompt = token_ids(server, PROMPT)

        def answer(adapter: str) -> list[int]:
            body = {"input_ids": prompt, "adapter_id": adapter, "max_tokens": COUNT}
            status, answer = post(server, body | {"ignore_eos": True}, "multilora_llm")
            assert status == 200, answer
            return answer["output_ids"]

        with ThreadPoolExecutor() as threads:
            base, *answers = threads.map(answer, ("", *ADAPTERS))
    assert base == greedy(model, prompt, base)
    for name, ids in zip(ADAPTERS, answers, strict=True):
        adapted = PeftModel.from_pretrained(model, str(DEMO / "adapters" / name))
        assert ids == greedy(adapted, prompt, ids), name
        model = adapted.unload()
    assert len(set(map(tuple, answers))) == len(ADAPTERS)


def greedy(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> list[int]:
    """What follows the prompt and each beginning of the answer: the answer, if that is right."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0]
    return logits[len(prompt) - 1 : -1].argmax(-1).tolist()

"""A mixed batch through the decoder equals PEFT with each adapter alone.

QK norm and biases stand between a projection and what follows; an adapter acts before the norm.
"""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from multilora.adapter_checkpoint import read_adapter
from multilora.adapter_pages import AdapterPages
from multilora.base_config import BaseConfig
from multilora.batch import BatchItem, make_batch
from multilora.forward_input import build_forward_input
from multilora.kv_cache import KVCache
from multilora.llama import load_llama
from multilora.request import Request
from multilora.sequence import Sequence
from tiny_families import VOCAB, make_model, write_model

CPU = torch.device("cpu")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {"one": (24, ALL), "two": (4, ATTENTION)}
PAGES = {"one": (2, 0), "two": (3,)}
ROWS = (("one", 9), ("", 5), ("two", 12), ("one", 4))  # (adapter, prompt tokens) of each sequence


def write_adapters(model: torch.nn.Module, folder: Path) -> PeftModel:
    """Saves ADAPTERS below `folder` and returns the PEFT model that holds both."""
    noise = torch.Generator().manual_seed(1)
    configs = {
        name: LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
        for name, (rank, targets) in ADAPTERS.items()
    }
    peft = get_peft_model(model, configs["one"], adapter_name="one")  # type: ignore[arg-type]
    assert isinstance(peft, PeftModel)
    peft.add_adapter("two", configs["two"])
    for name, weight in peft.named_parameters():
        if "lora_" in name:
            weight.data.normal_(std=0.1, generator=noise)
    peft.save_pretrained(str(folder))
    return peft.eval()


def expected_logits(peft: PeftModel, adapter: str, tokens: list[int]) -> torch.Tensor:
    ids = torch.tensor([tokens])
    with torch.no_grad():
        if not adapter:
            with peft.disable_adapter():
                return peft(input_ids=ids).logits[0]
        peft.set_adapter(adapter)
        return peft(input_ids=ids).logits[0]


@pytest.mark.parametrize("variant", ["llama-biases", "qwen2", "qwen3", "mistral-window"])
def test_mixed_batch_equals_peft(variant: str, tmp_path: Path) -> None:
    theirs = make_model(variant)
    base = BaseConfig.from_folder(write_model(theirs, tmp_path))
    peft = write_adapters(theirs, tmp_path)
    model = load_llama(tmp_path, base, torch.float32, CPU)
    pool = AdapterPages(base, 4, torch.float32, CPU)
    for name, pages in PAGES.items():
        pool.write(pages, read_adapter(tmp_path / name, name, base, torch.float32, 64))
    kv = KVCache(base, 16, 8, torch.float32, CPU)
    noise = torch.Generator().manual_seed(2)
    live: list[Sequence] = []
    for number, (adapter, length) in enumerate(ROWS):
        tokens = torch.randint(2, VOCAB, (length,), generator=noise).tolist()
        sequence = Sequence(Request(str(number), tuple(tokens), adapter), number, adapter)
        sequence.block_table = [3 * number + 1, 3 * number]
        live.append(sequence)
    for _ in range(3):
        items = [BatchItem(sequence, sequence.num_uncomputed_tokens) for sequence in live]
        batch = make_batch(items, PAGES)
        logits = model.forward(build_forward_input(batch, 8, CPU, torch.float32), kv, pool)
        for row, (sequence, count) in zip(logits, batch.items, strict=True):
            expected = expected_logits(peft, sequence.adapter_key, sequence.token_ids)[-1]
            scale = float(expected.abs().max())
            torch.testing.assert_close(row, expected, rtol=0, atol=1e-4 * scale)
            sequence.num_computed_tokens += count
            sequence.token_ids.append(int(row.argmax()))

"""The decoder's logits equal transformers' for every architecture, however the work is batched."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from multilora.base_model.config import NativeConfig
from multilora.forward.decoder import load_decoder
from support.engine.passes import CPU, assert_same_logits, reference, replayed, tokens_of
from support.kernels.cases import DEVICE
from support.tiny.families import VARIANTS, make_model, write_model


def check(
    theirs: PreTrainedModel,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    tolerance: float = 1e-4,
    **options: Any,
) -> None:
    model = load_decoder(folder, NativeConfig.from_folder(folder), dtype, device)
    assert_same_logits(theirs, model, dtype, device, tolerance, **options)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str, tmp_path: Path) -> None:
    model = make_model(variant)
    check(model, write_model(model, tmp_path))


@pytest.mark.parametrize("variant", ["mistral-window", "qwen3-biases"])
def test_replayed_passes_equal_transformers(variant: str, tmp_path: Path) -> None:
    """On a CPU without the interpreter, too: there torch's own ops run on the static buffers."""
    model = make_model(variant)
    device = torch.device(DEVICE if torch.cuda.is_available() else "cpu")
    folder = write_model(model, tmp_path)
    check(model, folder, device=device, way=replayed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_model("qwen3")
    model = model.half() if dtype == torch.float16 else model.bfloat16()
    write_model(model, tmp_path)
    check(model.float(), tmp_path, dtype, tolerance=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("variant", ["llama", "mistral-window", "qwen2-window", "qwen3"])
def test_the_gpu_computes_the_same(variant: str, tmp_path: Path) -> None:
    model = make_model(variant).bfloat16()
    write_model(model, tmp_path)
    check(model.float(), tmp_path, torch.bfloat16, torch.device("cuda"), 0.05)


def test_windows_and_scaled_rope_change_the_logits() -> None:
    """The comparisons above would prove nothing if a variant computed the same as the plain one."""
    tokens = tokens_of("d", 40)
    plain = reference(make_model("llama"), tokens)
    for variant in ("mistral-window", "llama-linear", "llama-llama3", "llama-yarn"):
        assert not torch.allclose(reference(make_model(variant), tokens), plain, atol=0.05)

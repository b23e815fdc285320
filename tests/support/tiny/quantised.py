"""A Llama in every form of quantised checkpoint, with the weights that its files mean.

Packed with plain arithmetic on whole numbers, as the libraries that write these forms describe
them, and nothing of ours.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from support.tiny.families import make_model

GROUP = 32  # columns with one scale
BLOCK = (48, 40)  # neither rows nor columns are multiples of it
FP8 = torch.float8_e4m3fn
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column in each nibble of a word, from the lowest
Tensors = dict[str, torch.Tensor]


class Codes(NamedTuple):
    """W = (q - zero) * scale, with q and zero in 0 … 2^bits - 1."""

    q: torch.Tensor  # [N, K]
    zero: torch.Tensor  # [N, G]
    scale: torch.Tensor  # float16 [N, G]

    def weight(self) -> torch.Tensor:
        group = self.q.shape[1] // self.scale.shape[1]
        zero, scale = (part.repeat_interleave(group, 1) for part in (self.zero, self.scale))
        return (self.q - zero) * scale.float()


def codes_of(w: torch.Tensor, bits: int, group: int, symmetric: bool = False) -> Codes:
    parts, steps = w.unflatten(1, (-1, group)), (1 << bits) - 1
    if symmetric:
        scale = (parts.abs().amax(2) / (steps // 2)).half()
        zero = torch.full_like(scale, 1 << (bits - 1), dtype=torch.int64)
    else:
        low, high = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
        scale = ((high - low) / steps).half()
        zero = (-low / scale.float()).round().long().clamp(0, steps)
    q = (parts / scale.float()[..., None]).round().long() + zero[..., None]
    return Codes(q.clamp(0, steps).flatten(1), zero, scale)


def words(numbers: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """int32 with 32 / bits numbers each, neighbours along `dim`, the first in the lowest bits."""
    last = numbers.movedim(dim, -1).unflatten(-1, (-1, 32 // bits))
    total = sum(last[..., i] * 2 ** (bits * i) for i in range(32 // bits))
    assert isinstance(total, torch.Tensor)
    return total.to(torch.int32).movedim(-1, dim).contiguous()


def gptq(
    bits: int = 4,
    group: int = GROUP,
    symmetric: bool = False,
    first_zero: int = 1,
    g_idx: Callable[[int, str], torch.Tensor] | None = None,
) -> "Form":
    """`g_idx` gives the groups of the columns of a module."""

    def write(w: torch.Tensor, name: str) -> tuple[Tensors, torch.Tensor]:
        columns = w.shape[1]
        size = columns if group == -1 else group
        groups = torch.arange(columns) // size if g_idx is None else g_idx(columns, name)
        order = groups.argsort(stable=True)
        codes = codes_of(w[:, order], bits, size, symmetric)
        meant, q = torch.empty_like(w), torch.empty_like(codes.q)
        meant[:, order], q[:, order] = codes.weight(), codes.q
        zeros = (codes.zero - first_zero) % (1 << bits)
        tensors = {
            "qweight": words(q.T, bits, 0),
            "qzeros": words(zeros.T, bits, 1),
            "scales": codes.scale.T.contiguous(),
            "g_idx": groups.int(),
        }
        return tensors, meant

    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric}
    config["checkpoint_format"] = "gptq" if first_zero else "gptq_v2"
    return Form(config | {"desc_act": g_idx is not None}, write)


def by_activation(columns: int, name: str) -> torch.Tensor:
    """The same for modules with the same input, as activations order them."""
    noise = torch.Generator().manual_seed(columns)
    return (torch.arange(columns) // GROUP)[torch.randperm(columns, generator=noise)]


def by_module(columns: int, name: str) -> torch.Tensor:
    noise = torch.Generator().manual_seed(sum(map(ord, name)))
    return (torch.arange(columns) // GROUP)[torch.randperm(columns, generator=noise)]


def awq(group: int = GROUP) -> "Form":
    def packed(numbers: torch.Tensor) -> torch.Tensor:
        ordered = numbers.unflatten(1, (-1, 8))[..., list(AWQ_ORDER)].flatten(1)
        return words(ordered, 4, 1)

    def write(w: torch.Tensor, name: str) -> tuple[Tensors, torch.Tensor]:
        codes = codes_of(w, 4, w.shape[1] if group == -1 else group)
        tensors = {
            "qweight": packed(codes.q.T),
            "qzeros": packed(codes.zero.T),
            "scales": codes.scale.T.contiguous(),
        }
        return tensors, codes.weight()

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
    return Form(config, write)


def packed(
    bits: int,
    group: int,
    symmetric: bool,
    g_idx: Callable[[int, str], torch.Tensor] | None = None,
) -> "Form":
    """pack-quantized of compressed-tensors: W8A16 and W4A16; `g_idx` as of gptq. The last group may
    be shorter."""

    def write(w: torch.Tensor, name: str) -> tuple[Tensors, torch.Tensor]:
        columns = w.shape[1]
        size = columns if group == -1 else group
        groups = torch.arange(columns) // size if g_idx is None else g_idx(columns, name)
        order = groups.argsort(stable=True)
        filled = nn.functional.pad(w[:, order], (0, -columns % size))
        codes = codes_of(filled, bits, size, symmetric)
        meant, q = torch.empty_like(w), torch.empty(w.shape, dtype=torch.int64)
        meant[:, order], q[:, order] = codes.weight()[:, :columns], codes.q[:, :columns]
        tensors = {
            "weight_packed": words(q, bits, 1),
            "weight_scale": codes.scale,
            "weight_shape": torch.tensor(w.shape),
        }
        if not symmetric:
            tensors["weight_zero_point"] = words(codes.zero, bits, 0)
        if g_idx is not None:
            tensors["weight_g_idx"] = groups.int()
        return tensors, meant

    strategy = "channel" if group == -1 else "group"
    weights: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": symmetric}
    weights |= {"strategy": strategy, "group_size": group}
    return Form(_compressed("pack-quantized", weights), write)


def _compressed(form: str, weights: dict[str, Any]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def int8(w: torch.Tensor, name: str) -> tuple[Tensors, torch.Tensor]:
    scale = w.abs().amax(1, keepdim=True) / 127
    q = (w / scale).round().to(torch.int8)
    return {"weight": q, "weight_scale": scale}, q.float() * scale


def int8_zero_points(w: torch.Tensor, name: str) -> tuple[Tensors, torch.Tensor]:
    codes = codes_of(w, 8, w.shape[1])
    tensors = {
        "weight": (codes.q - 128).to(torch.int8),
        "weight_scale": codes.scale,
        "weight_zero_point": (codes.zero - 128).to(torch.int8),
    }
    return tensors, codes.weight()


def fp8_rows(w: torch.Tensor, name: str) -> tuple[Tensors, torch.Tensor]:
    scale = w.abs().amax(1, keepdim=True) / 448
    q = (w / scale).to(FP8)
    return {"weight": q, "weight_scale": scale}, q.float() * scale


def fp8_whole(w: torch.Tensor, name: str) -> tuple[Tensors, torch.Tensor]:
    scale = w.abs().max() / 448
    q = (w / scale).to(FP8)
    return {"weight": q, "weight_scale": scale, "input_scale": scale.clone()}, q.float() * scale


def fp8_blocks(w: torch.Tensor, name: str) -> tuple[Tensors, torch.Tensor]:
    (rows, columns), (down, across) = w.shape, BLOCK
    scale = torch.empty(-(-rows // down), -(-columns // across))
    q, meant = torch.empty_like(w, dtype=FP8), torch.empty_like(w)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            here = slice(i * down, (i + 1) * down), slice(j * across, (j + 1) * across)
            scale[i, j] = w[here].abs().max() / 448
            q[here] = (w[here] / scale[i, j]).to(FP8)
            meant[here] = q[here].float() * scale[i, j]
    return {"weight": q, "weight_scale_inv": scale}, meant


class Form(NamedTuple):
    """A quantization_config, and what writes a module: its tensors by kind, and what they mean."""

    config: dict[str, Any]
    write: Callable[[torch.Tensor, str], tuple[Tensors, torch.Tensor]]


FORMS = {
    "gptq": gptq(),
    "gptq symmetric": gptq(symmetric=True),
    "gptq v2": gptq(first_zero=0),
    "gptq act order": gptq(g_idx=by_activation),
    "gptq orders": gptq(g_idx=by_module),
    "gptq int8": gptq(bits=8, group=-1, symmetric=True),
    "gptq int8 groups": gptq(bits=8),
    "awq": awq(),
    "awq whole rows": awq(group=-1),
    "W4A16": packed(4, GROUP, symmetric=True),
    "W4A16 zero points": packed(4, GROUP, symmetric=False),
    "W4A16 act order": packed(4, GROUP, symmetric=True, g_idx=by_activation),
    "W4A16 shorter groups": packed(4, 24, symmetric=True),
    "W8A16": packed(8, -1, symmetric=True),
    "W8A8": Form(_compressed("int-quantized", {"num_bits": 8, "type": "int"}), int8),
    "W8A8 zero points": Form(
        _compressed("int-quantized", {"num_bits": 8, "type": "int", "symmetric": False}),
        int8_zero_points,
    ),
    "compressed fp8": Form(_compressed("float-quantized", {"num_bits": 8}), fp8_rows),
    "fp8": Form({"quant_method": "fp8", "activation_scheme": "static"}, fp8_whole),
    "fp8 blocks": Form({"quant_method": "fp8", "weight_block_size": list(BLOCK)}, fp8_blocks),
}


def write_quantised(
    form: str, folder: Path, model: PreTrainedModel | None = None, head: bool = False
) -> PreTrainedModel:
    """Writes `model` (make_model("llama")) in that form, its head only if asked → the model that
    its files then mean."""
    model = model or make_model("llama")
    config, write = FORMS[form]
    model.config.save_pretrained(folder)
    file = folder / "config.json"
    whole = json.loads(file.read_text()) | {"quantization_config": config}
    file.write_text(json.dumps(whole))
    tensors = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and (head or name != "lm_head"):
                kinds, meant = write(module.weight, name)
                tensors.pop(f"{name}.weight", None)  # a tied head has none
                tensors |= {f"{name}.{kind}": tensor for kind, tensor in kinds.items()}
                module.weight.copy_(meant)
    save_file(tensors, folder / "model.safetensors")
    return model

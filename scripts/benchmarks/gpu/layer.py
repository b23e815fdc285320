"""One layer of Llama without its attention: what LoRA adds when the base model is there.

    RMS norm → qkv → RoPE, KV write;   o into the residual
    RMS norm → gate_up → SwiGLU;   down into the residual

Ours takes the engine's own path; the others add their update to the product and go on with the
plain consumers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.contenders import Own
from benchmarks.gpu.data import LoRAData
from benchmarks.gpu.shapes import layer_sites
from multilora.base_model.config import NativeConfig
from multilora.base_model.sites import LoRASite
from multilora.base_model.weights import DenseWeight
from multilora.lora.linear import BatchLoRA, Linear
from multilora_kernels.rms_norm import rms_norm
from multilora_kernels.rope_kv_write import rope_kv_write
from multilora_kernels.swiglu import swiglu

BASE = "base"  # the layer without any LoRA
_BLOCK_SIZE = 16


@dataclass(frozen=True, eq=False)
class BaseLayers:
    """Matrices of a few layers, taken in turn, and what the consumers need besides for T rows."""

    base: NativeConfig
    matrices: list[dict[str, torch.Tensor]]  # group → [out_total, in]
    norm: torch.Tensor  # [hidden]
    rope: torch.Tensor
    kv_slots: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor


def random_matrices(
    base: NativeConfig, num_layers: int, dtype: torch.dtype, device: torch.device
) -> list[dict[str, torch.Tensor]]:
    def matrix(site: LoRASite) -> torch.Tensor:
        shape = (site.out_features, site.in_features)
        return torch.randn(shape, dtype=dtype, device=device).div_(shape[1] ** 0.5)

    sites = layer_sites(base)
    return [{group: matrix(site) for group, site in sites.items()} for _ in range(num_layers)]


def base_layers(
    base: NativeConfig, matrices: list[dict[str, torch.Tensor]], num_rows: int
) -> BaseLayers:
    some = matrices[0]["qkv"]
    blocks = -(-num_rows // _BLOCK_SIZE)
    cache = some.new_zeros(2, blocks, _BLOCK_SIZE, base.num_kv_heads, base.head_dim)
    return BaseLayers(
        base=base,
        matrices=matrices,
        norm=some.new_ones(base.hidden_size),
        rope=some.new_ones(num_rows, 2, base.head_dim),
        kv_slots=torch.arange(num_rows, device=some.device),
        k_cache=cache[0],
        v_cache=cache[1],
    )


@dataclass(frozen=True, eq=False)
class _Pages:
    """What BatchLoRA asks of a RankPagePool."""

    a: dict[str, torch.Tensor]
    b: dict[str, torch.Tensor]


_Linears = list[dict[str, Linear]]  # of each layer of the data, by group


def layer_runs(layers: BaseLayers, data: LoRAData, others: dict[str, Own]) -> dict[str, Any]:
    """Name → a function that runs all layers of `data`."""
    linears = _linears(layers, data)
    pages: Any = _Pages(
        {_site_name(*key): data.layers[key[0]][key[1]].a for key in data.groups},
        {_site_name(*key): data.layers[key[0]][key[1]].b for key in data.groups},
    )
    run = partial(_run, layers, data, linears)
    runs: dict[str, Callable[[], None]] = {BASE: partial(run, None, {})}
    runs["ours"] = partial(run, BatchLoRA(pages, data.segments), {})
    for name, own in others.items():
        runs[name] = partial(run, None, own)
    return runs


def _site_name(layer: int, group: str) -> str:
    return f"layers.{layer}.{group}"


def _linears(layers: BaseLayers, data: LoRAData) -> _Linears:
    """The data may have more layers than the base model, whose sites are repeated then."""
    sites, count = layer_sites(layers.base), len(layers.matrices)

    def linear(layer: int, group: str) -> Linear:
        site = replace(sites[group], name=_site_name(layer, group), layer=layer)
        return Linear(site, DenseWeight(layers.matrices[layer % count][group], bias=None))

    return [{group: linear(layer, group) for group in sites} for layer in range(len(data.layers))]


def _run(
    layers: BaseLayers, data: LoRAData, linears: _Linears, lora: BatchLoRA | None, own: Own
) -> None:
    residual, rest = data.layers[0]["o"].y, None
    for index, (groups, linear) in enumerate(zip(data.layers, linears, strict=True)):
        x = _norm(layers, residual, rest)
        qkv = linear["qkv"].project(x, lora)
        _add(own, index, "qkv", x, qkv.y)
        _consume_qkv(layers, qkv.y, qkv.delta)
        rest = linear["o"].add_to(residual, groups["o"].x, lora)
        _add(own, index, "o", groups["o"].x, residual)
        x = _norm(layers, residual, rest)
        gate_up = linear["gate_up"].project_wide(x, lora)
        _add(own, index, "gate_up", x, gate_up.y)
        inner = swiglu(*gate_up)
        rest = linear["down"].add_to(residual, inner, lora)
        _add(own, index, "down", inner, residual)
    _norm(layers, residual, rest)


def _norm(
    layers: BaseLayers, residual: torch.Tensor, rest: torch.Tensor | None = None
) -> torch.Tensor:
    return rms_norm(residual, layers.norm, layers.base.rms_norm_eps, rest)


def _consume_qkv(layers: BaseLayers, qkv: torch.Tensor, delta: torch.Tensor | None = None) -> None:
    base = layers.base
    rope_kv_write(
        qkv,
        layers.rope,
        layers.kv_slots,
        layers.k_cache,
        layers.v_cache,
        base.num_heads,
        base.num_kv_heads,
        None,
        base.rms_norm_eps,
        delta,
    )


def _add(own: Own, layer: int, group: str, x: torch.Tensor, y: torch.Tensor) -> None:
    if own:
        own[layer, group](x, y)


def run_with_own_base(
    layers: BaseLayers, data: LoRAData, objects: dict[tuple[int, str], Any]
) -> None:
    """The same for SGLang v2, whose plans say how it overlaps with the base product."""
    residual = data.layers[0]["o"].y
    for index, groups in enumerate(data.layers):
        matrices = layers.matrices[index % len(layers.matrices)]
        attended, x = groups["o"].x, _norm(layers, residual)
        qkv = objects[index, "qkv"].run_with_base(x, partial(F.linear, x, matrices["qkv"]))
        _consume_qkv(layers, qkv)
        add = partial(residual.addmm_, attended, matrices["o"].T)
        objects[index, "o"].run_with_base(attended, add)
        x = _norm(layers, residual)
        gate_up = objects[index, "gate_up"].run_with_base(
            x, partial(F.linear, x, matrices["gate_up"])
        )
        inner = swiglu(gate_up)
        add = partial(residual.addmm_, inner, matrices["down"].T)
        objects[index, "down"].run_with_base(inner, add)
    _norm(layers, residual)

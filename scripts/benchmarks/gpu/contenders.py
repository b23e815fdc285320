"""Who computes the LoRA of a layer: ours, other projects' kernels, grouped products of PyTorch."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.data import LoRAData, LoRAGroup
from benchmarks.gpu.shapes import MOST_DECODE_ROWS
from multilora_kernels.lora import add_lora

AddLoRA = Callable[[torch.Tensor, torch.Tensor], object]  # (x, y): y += LoRA of x, in place
Own = dict[tuple[int, str], AddLoRA]  # of each layer and group
Contender = Callable[[LoRAData], Own]
_grouped_mm: Any = getattr(torch, "_grouped_mm", None)  # not in every PyTorch


def contenders(peers: Path | None) -> dict[str, Contender]:
    """By name, ours first. `peers` is the folder with peers_api.py, None: none."""
    found: dict[str, Contender] = {"ours": ours}
    if peers is not None:
        for name in connect(peers, "peers_api").PEERS:
            found[name] = _peer(name, peers)
    if _grouped_mm is not None:
        found["grouped_mm"] = grouped
    return found


def connect(peers: Path, module: str) -> Any:
    """Import one of the peers' modules, repaired first for OpenAI Triton's interpreter."""
    if str(peers) not in sys.path:
        sys.path.append(str(peers))
        if os.environ.get("TRITON_INTERPRET") == "1":
            importlib.import_module("triton_interpreter").repair()
    importlib.import_module("peers_api")  # makes the folder GPU_PEERS importable
    return importlib.import_module(module)


def forget(peers: Path | None) -> None:
    """Drop the pointers to weights that vLLM keeps, once no graph uses them any more."""
    if peers is not None:
        connect(peers, "peers_api").VllmLora.forget_weights()


def ours(data: LoRAData) -> Own:
    def add(own: LoRAGroup) -> AddLoRA:
        return lambda x, y: add_lora(y, x, own.a, own.b, own.slice_sizes, data.segments)

    return {(layer, group): add(data.layers[layer][group]) for layer, group in data.groups}


def _peer(name: str, peers: Path) -> Contender:
    def build(data: LoRAData) -> Own:
        return {key: peer.run for key, peer in peer_objects(name, peers, data).items()}

    return build


def peer_objects(name: str, peers: Path, data: LoRAData) -> dict[tuple[int, str], Any]:
    """Packed and prepared, one of each layer and group."""
    kind = connect(peers, "peers_api").PEERS[name]
    decode = data.mix.num_rows <= MOST_DECODE_ROWS
    objects: dict[tuple[int, str], Any] = {}
    for layer, group in data.groups:
        own = data.layers[layer][group]
        scalings = [1.0] * data.mix.num_adapters
        peer = kind(own.A, own.B, list(data.mix.ranks), scalings, own.x.device)
        peer.prepare(data.row_adapter, decode=decode)
        objects[layer, group] = peer
    return objects


def grouped(data: LoRAData) -> Own:
    """PyTorch's products of groups of rows: one for A, one for each slice of B."""
    ends = torch.tensor(data.mix.counts, device=data.layers[0]["qkv"].x.device).cumsum(0).int()

    def add(own: LoRAGroup) -> AddLoRA:
        a = torch.cat(own.A, dim=1).transpose(1, 2)  # [adapters, in, slices * R]
        b = [part.transpose(1, 2) for part in own.B]
        rank = own.A[0].shape[1]

        def run(x: torch.Tensor, y: torch.Tensor) -> None:
            h = _grouped_mm(x, a, ends)
            parts = zip(h.split(rank, dim=1), b, y.split(own.slice_sizes, dim=1), strict=True)
            for own_h, own_b, own_y in parts:
                own_y += _grouped_mm(own_h, own_b, ends)

        return run

    return {(layer, group): add(data.layers[layer][group]) for layer, group in data.groups}

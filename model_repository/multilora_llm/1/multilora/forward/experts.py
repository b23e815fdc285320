"""LoRA on parameters that no linear layer holds: the matrices of experts, and routers; as PEFT's
target_parameters trains it.

    y = x (W_e + scaling · B_e A_e)ᵀ + bias_e        for expert e; a router is one such matrix

Experts are computed by a function that the library calls in the place of its own, base products in
the library's way; adapters add to these before the activation and before the weights of the router.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import moe
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from multilora.base_model.sites import LoRASite
from multilora.lora.linear import BatchLoRA
from multilora_kernels.expert_rows import ExpertRows, expert_rows

EXPERTS = "multilora"  # the name under which the library knows our function
_LIBRARYS = "grouped_mm"
Lora = Callable[[], BatchLoRA | None]  # that of the pass


class _AdaptedExperts(NamedTuple):
    sites: dict[str, LoRASite]  # by the names of parameters
    lora: Lora


_ADAPTED: WeakKeyDictionary[nn.Module, _AdaptedExperts] = WeakKeyDictionary()  # of all models


def adapt_parameters(model: PreTrainedModel, sites: Sequence[LoRASite], lora: Lora) -> None:
    """From now on adapters act on these parameters of `model`, which has its weights and computes
    experts with EXPERTS."""
    for site in sites:
        path, _, name = site.slices[0].module.rpartition(".")
        module = model.get_submodule(path)
        if site.experts > 1:
            _ADAPTED.setdefault(module, _AdaptedExperts({}, lora)).sites[name] = site
        else:
            setattr(module, name, _AdaptedMatrix.of(getattr(module, name), site, lora))


def implementation(sites: Sequence[LoRASite]) -> str | None:
    """What the library is to compute experts with; None: what it chooses."""
    return EXPERTS if any(site.experts > 1 for site in sites) else None


def _compute(
    experts: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """What the classes call: rows [T, hidden], their experts and the weights of these [T, k] →
    [T, hidden]. A pass without adapters is the library's alone."""
    adapted = _ADAPTED.get(experts)
    lora = adapted.lora() if adapted else None
    if adapted is None or lora is None:
        theirs = ALL_EXPERTS_FUNCTIONS[_LIBRARYS]
        return theirs(experts, hidden_states, top_k_index, top_k_weights)
    rows = expert_rows(top_k_index.long(), experts.num_experts, lora.segments)
    own = BatchLoRA(lora.pages, rows.segments)

    def product(x: torch.Tensor, name: str) -> torch.Tensor:
        y = _base_product(experts, x, name, rows)
        if site := adapted.sites.get(name):
            own.add(y, x, site)
        return y

    x = hidden_states[rows.rows]
    if experts.has_gate:
        y = experts._apply_gate(product(x, "gate_up_proj"))
    else:
        y = experts.act_fn(product(x, "up_proj"))
    y = product(y, "down_proj")
    if experts.has_post_expert_norm:
        y = experts.post_expert_norm(y)
    y = y * top_k_weights.flatten()[rows.pairs, None]
    # Each row's experts in their own order, whatever shares the pass.
    ordered = torch.empty_like(y).index_copy_(0, rows.pairs, y)
    return ordered.view(*top_k_index.shape, -1).sum(dim=1).to(hidden_states.dtype)


def _base_product(experts: Any, x: torch.Tensor, name: str, rows: ExpertRows) -> torch.Tensor:
    """[S, in] → [S, out], rows sorted by expert."""
    bias = getattr(experts, f"{name}_bias")[rows.experts] if experts.has_bias else None
    weight = getattr(experts, name)
    return moe._grouped_linear(x, weight, rows.ends, bias, experts.is_transposed)


ALL_EXPERTS_FUNCTIONS.register(EXPERTS, _compute)


class _AdaptedMatrix(nn.Parameter):
    """A 2-D parameter that its module gives to F.linear, and to nothing else."""

    site: LoRASite
    lora: Lora

    @staticmethod
    def of(matrix: torch.Tensor, site: LoRASite, lora: Lora) -> "_AdaptedMatrix":
        made = _AdaptedMatrix(matrix.data, requires_grad=False)
        made.site, made.lora = site, lora
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            y = func(*args, **(kwargs or {}))
            matrix = args[1] if func is F.linear and len(args) > 1 else None
            if isinstance(matrix, _AdaptedMatrix) and (lora := matrix.lora()):
                x = args[0].reshape(-1, matrix.site.in_features)
                lora.add(y.view(len(x), -1), x, matrix.site)
        return y

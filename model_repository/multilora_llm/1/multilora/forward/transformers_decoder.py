"""TransformersDecoder: a class of the transformers library over our paged KV cache, with LoRA; see
BaseModel.

RoPE, activations, experts, scales and soft caps are the class's own modules, and so is the loading
of its weights. Ours are the linear layers that are sites, RMS norms, and attention: the class gets
one row [1, T] of the tokens of all sequences with their positions, no cache and no mask, and the
function that it calls for attention reads and writes the paged cache.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from multilora.base_model.checkpoint import watched
from multilora.base_model.sites import EMBEDDING, HEAD, LoRASite
from multilora.base_model.transformers_config import TransformersConfig
from multilora.base_model.weights import QuantisedSites, SiteWeight
from multilora.forward.base_model import BaseModel, Hidden, Step
from multilora.forward.experts import adapt_parameters
from multilora.forward.transformers_modules import use_own_modules
from multilora.lora.linear import BatchLoRA, Linear, SliceModule, TableModule
from multilora_kernels.kv_write import kv_write

ATTENTION = "multilora"  # has no entry among the library's mask functions, so there is no mask


class _Current:
    """The pass that a model computes. Its modules hold this, as nothing can be handed to them
    through the methods of the class."""

    def __init__(self) -> None:
        self._step: Step | None = None
        self.head_lora: BatchLoRA | None = None  # of the rows that the head gets

    @property
    def step(self) -> Step:
        if self._step is None:
            raise RuntimeError("a module of the base model was called outside of a pass")
        return self._step

    def lora(self) -> BatchLoRA | None:
        return self.step.lora

    def __call__(self, step: Step | None) -> None:
        self._step = step


class _PagedLayer:
    """Attention of layer `index` of the KV cache."""

    def __init__(self, index: int, window: int | None, current: _Current) -> None:
        self._index = index
        self._window = window
        self._current = current

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """q [T, heads, D], k [T, kv_heads, D], v [T, kv_heads, V] → [T, heads, V]."""
        step, layer, window = self._current.step, self._index, self._window
        k_cache, v_cache = step.kv.k[layer], step.kv.v[layer]
        # RoPE may have widened them.
        q, k, v = (_adjacent(heads.to(k_cache.dtype)) for heads in (q, k, v))
        kv_write(k, v, k_cache, v_cache, step.inputs.kv_slots)
        plain = softcap is None and sinks is None and k.shape == v.shape
        unpaged = plain and step.takes_rows(k, window)
        rows = (k.contiguous(), v.contiguous()) if unpaged else None
        heads_adjacent = q.stride(1) == q.shape[2]
        q = q if heads_adjacent else q.contiguous()
        return step.attend(layer, q, scale, window, rows, softcap, sinks)


def _adjacent(heads: torch.Tensor) -> torch.Tensor:
    """With the numbers of each head adjacent."""
    return heads if heads.stride(-1) == 1 else heads.contiguous()


_LAYERS: WeakKeyDictionary[nn.Module, _PagedLayer] = WeakKeyDictionary()  # of all models


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What the classes call: [1, heads, T, D] each → [1, T, heads, V]. Arguments that are not named
    here were looked at in the trace."""
    q, k, v = (heads[0].transpose(0, 1) for heads in (query, key, value))
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    return _LAYERS[module].attend(q, k, v, scale, softcap, s_aux)[None], None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)


class _GivenRows(nn.Module):
    """Stands where the class had its layers, once these have computed `rows` [1, N, hidden]: the
    class then makes logits of them in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: torch.Tensor | None = None
        self.kind: type[Any] = BaseModelOutputWithPast  # of what the layers give

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.kind(last_hidden_state=self.rows)


class TransformersDecoder(BaseModel):
    """Filled by load_transformers_decoder."""

    def __init__(
        self,
        base: TransformersConfig,
        model: PreTrainedModel,
        read: Callable[[LoRASite], SiteWeight],
        quantised: QuantisedSites | None = None,
    ) -> None:
        """`model` has its weights but those of sites, which `read` gives; it is changed."""
        super().__init__(base, quantised)
        self._current = current = _Current()
        for site in watched(base.layer_sites, "preparing the base model"):
            made = SliceModule.of(Linear(site, read(site)), current.lora)
            for part, module in zip(site.slices, made, strict=True):
                model.set_submodule(part.module, module)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = own(tensor.data)
        use_own_modules(model)
        for module, lora in ((EMBEDDING, current.lora), (HEAD, lambda: current.head_lora)):
            if site := base.site(module):
                table = TableModule(model.get_submodule(module), site, lora)
                model.set_submodule(module, table)
        for index, shape in enumerate(base.attention):
            layer = _PagedLayer(index, shape.window, self._current)
            _LAYERS[model.get_submodule(shape.module)] = layer
        adapt_parameters(model, base.parameter_sites, current.lora)
        self._layers = model.get_submodule(model.base_model_prefix)
        self._given = _GivenRows()
        self._model = model
        model.set_submodule(model.base_model_prefix, self._given)

    def _hidden(self, step: Step) -> Hidden:
        self._current(step)
        try:
            found = self._layers(
                input_ids=step.inputs.input_ids[None],
                position_ids=step.inputs.positions[None],
                use_cache=False,
            )
        finally:
            self._current(None)
        self._given.kind = type(found)
        return Hidden(found.last_hidden_state[0])

    def _logits(self, hidden: Hidden, lora: BatchLoRA | None) -> torch.Tensor:
        self._given.rows, self._current.head_lora = hidden.x[None], lora
        try:
            return self._model(inputs_embeds=self._given.rows, use_cache=False).logits[0]
        finally:
            self._given.rows = self._current.head_lora = None


def own(tensor: torch.Tensor) -> torch.Tensor:
    """On a CPU a copy: it may lie in a mapped file, which somebody may change or cut."""
    return tensor.clone() if tensor.device.type == "cpu" else tensor

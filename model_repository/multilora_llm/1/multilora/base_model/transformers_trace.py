"""Trace: one pass of a class of the transformers library, on PyTorch's meta device, where tensors
have shapes and no numbers.

Functions of ours stand in the places of attention, masks and experts. They show each attention
(heads, sizes, window), each linear layer (path, sizes), and the parameters that are used like the
weights of such, in the order of the forward pass.
"""

import copy
import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from multilora.base_model.sites import EMBEDDING, HEAD, LoRASite, Slice
from multilora.base_model.transformers_rope import is_dynamic, ropes
from multilora.errors import StartupError, first_line

MAX_HEAD_DIM = 256
_TRACE = "multilora_trace"  # the name under which our functions are registered
_ROWS = 3  # of the pass that is traced
_LAYER = re.compile(r"\.(\d+)\.")  # its number in the path of a module
_MOST_SLICES = 3  # of a site; see add_lora
_OTHER_ATTENTION = "does not take its attention from ALL_ATTENTION_FUNCTIONS"
# Arguments of attention that say nothing that is not known already.
_KNOWN_ARGUMENTS = {
    "dropout", "scaling", "softcap", "s_aux", "sliding_window", "is_causal", "position_ids",
    "position_embeddings", "use_cache", "cache_position", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict", "deterministic",
}  # fmt: skip


class AttentionShape(NamedTuple):
    """One attention of a pass; sizes as those of BaseConfig."""

    module: str  # its path
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None  # see NativeConfig.layer_windows

    @property
    def sizes(self) -> tuple[int, ...]:
        """Those that the KV cache and the kernels have once for all layers."""
        return self[1:5]


class _Mask(NamedTuple):
    tensor: torch.Tensor  # kept, so that no other has its id
    window: int | None
    is_known: bool  # whether it is that of the window


class _Call(NamedTuple):
    """Of a linear layer, in the pass that is traced."""

    module: str
    rows: int
    input: torch.Tensor  # kept, so that no other tensor is taken for it
    version: int  # of the input: how often it was written to

    def shares_input(self, other: "_Call") -> bool:
        return self.input is other.input and self.version == other.version


class Trace:
    """The pass, of the class of a checkpoint folder; see run."""

    def __init__(self, folder: Path) -> None:
        self.attention: list[AttentionShape] = []
        self.architecture = ""
        self._folder = folder
        self._names: dict[nn.Module, str] = {}
        self._calls: list[_Call] = []  # of linear layers
        self._takes_views = True  # whether their outputs may be columns of a wider tensor
        self._linears: dict[str, nn.Linear] = {}
        self._matrices: dict[int, tuple[str, nn.Parameter]] = {}  # of other modules, by their ids
        self._bare: list[LoRASite] = []  # parameters that may be places for adapters
        self._used_otherwise: set[str] = set()
        self._masks: dict[int, _Mask] = {}  # by the ids of the tensors

    def run(self, library: PretrainedConfig) -> None:
        """Raises StartupError for what cannot be computed."""
        ALL_ATTENTION_FUNCTIONS.register(_TRACE, self._attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(_TRACE, self._mask)
        ALL_EXPERTS_FUNCTIONS.register(_TRACE, self._mix)
        model = self._build(library)
        self.architecture = type(model).__name__
        self._names = {module: name for name, module in model.named_modules()}
        for module, name in self._names.items():
            if type(module) is nn.Linear:
                self._linears[name] = module
                module.register_forward_hook(self._note)
        self._matrices = {
            id(weight): (name, weight)
            for name, weight in model.named_parameters()
            if weight.ndim == 2 and name.rpartition(".")[0] not in self._linears
        }
        self._check_class(model)
        if self._failure(model):
            self._takes_views = False
            if reason := self._failure(model):
                raise self._refuse(f"cannot be traced ({reason})")
        self._check(model)

    def _failure(self, model: PreTrainedModel) -> str:
        """Of one pass; "" where there is none. StartupError for what cannot be computed."""
        self.attention.clear()
        self._calls.clear()
        self._bare.clear()
        rows = torch.arange(_ROWS, device="meta")[None]
        inputs = {"input_ids": rows, "position_ids": rows, "attention_mask": torch.ones_like(rows)}
        try:
            # Tensors of the inference mode have no versions.
            with torch.no_grad(), _Uses(self._note_use):
                model(**inputs, use_cache=False)
        except StartupError:
            raise
        except Exception as error:
            return first_line(error)
        return ""

    def sites(self) -> Iterator[LoRASite]:
        """The linear layers of layers that see each row of a pass once, in the order of the pass.
        Neighbours with the same input are one site."""
        times = Counter(call.module for call in self._calls)
        group: list[_Call] = []
        for call in self._calls:
            if times[call.module] > 1 or call.rows != _ROWS or not _LAYER.search(call.module):
                continue
            fits = self._takes_views and len(group) < _MOST_SLICES
            if group and not (fits and self._are_alike(group[0], call)):
                yield self._site(group)
                group = []
            group.append(call)
        if group:
            yield self._site(group)

    def parameters(self) -> Iterator[LoRASite]:
        """Of the layers, what is no linear layer and is used like one: the matrices of experts, if
        the library computes these, and 2-D parameters of other modules (routers). Each sees every
        row of a pass once."""
        times = Counter(site.name for site in self._bare)
        for site in self._bare:
            if times[site.name] == 1 and site.name not in self._used_otherwise:
                yield site

    def _are_alike(self, one: _Call, other: _Call) -> bool:
        """Whether they share an input, and both have a bias or neither: that of a site is whole."""
        biases = [self._linears[call.module].bias is not None for call in (one, other)]
        return one.shares_input(other) and biases[0] == biases[1]

    def tables(self) -> tuple[str, ...]:
        """The short names of embedding and head, where adapters can act on them."""
        modules = {name: module for module, name in self._names.items()}
        head = self._linears.get(HEAD)
        found = {
            "embed_tokens": isinstance(modules.get(EMBEDDING), nn.Embedding),
            "lm_head": head is not None and head.bias is None,
        }
        return tuple(name for name, is_there in found.items() if is_there)

    def _site(self, calls: list[_Call]) -> LoRASite:
        names = [call.module for call in calls]
        linears = [self._linears[name] for name in names]
        number = _LAYER.search(names[0])
        assert number
        return LoRASite(
            "+".join([names[0], *(name.rpartition(".")[2] for name in names[1:])]),
            int(number[1]),
            linears[0].in_features,
            tuple(map(Slice, names, (linear.out_features for linear in linears))),
            linears[0].bias is not None,
        )

    def _build(self, library: PretrainedConfig) -> PreTrainedModel:
        library = copy.deepcopy(library)
        for rope in filter(is_dynamic, ropes(library)):
            rope["rope_type"] = "default"  # that of dynamic RoPE looks at positions
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(
                    library,
                    attn_implementation=_TRACE,
                    experts_implementation=_TRACE,
                    trust_remote_code=False,
                ).eval()
        except Exception as error:
            if isinstance(error, KeyError) and error.args == (_TRACE,):
                self.architecture = type(library).__name__.removesuffix("Config")
                raise self._refuse(_OTHER_ATTENTION) from None
            what = f"transformers makes no causal language model of it ({first_line(error)})"
            what += "; correct it, or serve a model that generates text"
            raise config_error(self._folder, what) from None

    def _note(self, module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> Any:
        """Gives the class what it gets of a site with several slices: columns of a wider tensor."""
        (x,) = inputs
        self._calls.append(_Call(self._names[module], x.shape[:-1].numel(), x, x._version))
        *rows, columns = output.shape
        return output.new_empty(*rows, 2 * columns)[..., :columns] if self._takes_views else output

    def _mix(
        self, experts: nn.Module, rows: torch.Tensor, index: Any = None, *_: Any, **__: Any
    ) -> torch.Tensor:
        """Stands for experts, whose own functions look at numbers. `index` [rows, k] names those of
        each row."""
        shape = getattr(index, "shape", ())
        if rows.shape[0] == _ROWS and len(shape) == 2 and shape[0] == _ROWS:
            used = ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj")
            for name, weight in experts.named_parameters(recurse=False):
                if name in used and weight.ndim == 3 and len(weight) > 1:
                    count, *sizes = weight.shape
                    transposed = bool(experts.is_transposed)
                    outputs, inputs = reversed(sizes) if transposed else sizes
                    path = f"{self._names[experts]}.{name}"
                    self._add_bare(path, inputs, outputs, count, transposed)
        return torch.empty_like(rows)

    def _note_use(self, func: Any, given: tuple[Any, ...], result: Any) -> None:
        """A parameter that is anything but the weight of a product is no place for adapters."""
        for index, argument in enumerate(given):
            name, weight = self._matrices.get(id(argument), ("", None))
            if weight is None or not isinstance(result, torch.Tensor):
                continue
            if func is F.linear and index == 1 and given[0].shape[:-1].numel() == _ROWS:
                self._add_bare(name, weight.shape[1], weight.shape[0])
            else:
                self._used_otherwise.add(name)

    def _add_bare(
        self, name: str, inputs: int, outputs: int, experts: int = 1, is_transposed: bool = False
    ) -> None:
        if number := _LAYER.search(name):
            part = (Slice(name, outputs, is_parameter=True),)
            site = LoRASite(name, int(number[1]), inputs, part, experts=experts)
            self._bare.append(replace(site, is_transposed=is_transposed))

    def _mask(
        self, q_length: int, kv_length: int, mask_function: Callable[..., Any],
        local_size: int | None = None, **_: Any,
    ) -> torch.Tensor:  # fmt: skip
        """A tensor that stands for the mask. The class may ask for some that no layer uses."""
        mask = torch.empty(1, 1, q_length, kv_length, dtype=torch.bool, device="meta")
        self._masks[id(mask)] = _Mask(mask, local_size, is_window(mask_function, local_size))
        return mask

    def _attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        attention_mask: torch.Tensor | None, **arguments: Any,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        for name, argument in arguments.items():
            if name not in _KNOWN_ARGUMENTS and argument is not None and argument is not False:
                raise self._refuse(f"gives attention an argument that is not supported: {name}")
        causal = arguments.get("is_causal")
        if not (getattr(module, "is_causal", True) if causal is None else causal):
            raise self._refuse("has attention that is not causal")
        if query.shape[2] != _ROWS or key.shape[2] != _ROWS:
            raise self._refuse("attends to other rows than those of the pass")
        window = arguments.get("sliding_window") or None
        if attention_mask is not None:  # it counts, as in the library's own functions
            if (mask := self._masks.get(id(attention_mask))) is None:
                raise self._refuse("makes a mask of its own")
            if not mask.is_known:
                raise self._refuse("has attention that is neither causal nor of a sliding window")
            window = mask.window
        (_, heads, _, head_dim), kv_heads, value_dim = query.shape, key.shape[1], value.shape[3]
        name = self._names[module]
        self.attention.append(AttentionShape(name, heads, kv_heads, head_dim, value_dim, window))
        return query.new_empty(1, _ROWS, heads, value_dim), None

    def _check_class(self, model: PreTrainedModel) -> None:
        """StartupError for what shows without a pass."""
        mixes_rows = (nn.Conv1d, nn.Conv2d, nn.RNNBase)
        if getattr(model, "_is_stateful", False) or any(
            isinstance(module, mixes_rows) for module in self._names
        ):
            raise self._refuse("keeps a state besides keys and values (Mamba, linear attention)")
        if model.base_model_prefix not in dict(model.named_children()):
            raise self._refuse("has no layers apart from its head")
        for module, name in self._names.items():
            offset = getattr(module, "padding_idx", None)
            if name.endswith("position_embeddings") and offset is not None:
                raise self._refuse("counts positions from its padding token on")
        layers = type(model.get_submodule(model.base_model_prefix))
        if "position_ids" not in inspect.signature(layers.forward).parameters:
            raise self._refuse("takes no position_ids")

    def _check(self, model: PreTrainedModel) -> None:
        """StartupError for what the whole pass shows."""
        layers = model.config.num_hidden_layers
        if not self.attention:
            raise self._refuse(_OTHER_ATTENTION if layers > 0 else "has no layers")
        if len(self.attention) != layers:
            raise self._refuse(f"has {layers} layers, but {len(self.attention)} attend")
        if len({shape.module for shape in self.attention}) != len(self.attention):
            raise self._refuse("has layers that share an attention")
        if any(shape.window is not None and shape.window < 1 for shape in self.attention):
            raise self._refuse("has a sliding window of no tokens")
        first = self.attention[0]
        if any(shape.sizes != first.sizes for shape in self.attention):
            raise self._refuse("has layers with heads of different numbers or sizes")
        if max(first.head_dim, first.value_dim) > MAX_HEAD_DIM:
            raise self._refuse(f"has heads of more than {MAX_HEAD_DIM} numbers")
        if first.num_heads % first.num_kv_heads:
            raise self._refuse(f"has {first.num_heads} heads for {first.num_kv_heads} of K and V")
        if not any(self.sites()):
            raise self._refuse("has no nn.Linear in its layers")

    def _refuse(self, what: str) -> StartupError:
        what = f"{self.architecture} {what}, which is not supported; serve another base model"
        return config_error(self._folder, what)


def config_error(folder: Path, what: str) -> StartupError:
    """About the config.json of a folder."""
    return StartupError(f"{folder / 'config.json'}: {what}")


def is_window(mask_function: Callable[..., Any], local_size: int | None) -> bool:
    """Whether a query sees itself and the tokens before it, the last `local_size` if that is given.

    Looked at around a few queries, wherever blocks or chunks of that size may end.
    """
    size = local_size or 64
    for query in (0, size - 1, size, 5 * size - 1, 5 * size, 5 * size + size // 2):
        for step in (-1, 0, 1, size - 1, size, size + 1, 3 * size):
            expected = 0 <= step < (local_size or math.inf)
            at = [torch.tensor(n) for n in (0, 0, query, query - step)]
            if step <= query and bool(mask_function(*at)) != expected:
                return False
    return True


class _Uses(TorchFunctionMode):
    """Tells `note` each function of torch with its arguments and its result."""

    def __init__(self, note: Callable[[Any, tuple[Any, ...], Any], None]) -> None:
        super().__init__()
        self._tell = note

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._tell(func, args, result)
        return result

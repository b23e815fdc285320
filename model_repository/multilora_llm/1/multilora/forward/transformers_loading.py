"""Loads a TransformersDecoder: the library reads what its class holds, except the linear layers of
a quantised base model, which our own readers read."""

import logging
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging as library_logging
from transformers.utils.quantization_config import (
    FineGrainedFP8Config,
    Mxfp4Config,
    QuantizationConfigMixin,
)

from multilora.base_model.checkpoint import (
    TEXT_PART,
    CheckpointFiles,
    report_unused,
    text_name,
    watched,
)
from multilora.base_model.quantised.scheme import Scheme, read_scheme
from multilora.base_model.sites import HEAD, BaseConfig, LoRASite, modules
from multilora.base_model.transformers_config import TransformersConfig
from multilora.base_model.transformers_rope import varying_ropes, with_fixed_rope
from multilora.base_model.weights import (
    DenseWeight,
    QuantisedSites,
    SiteReader,
    SiteWeight,
    packed,
)
from multilora.errors import StartupError, first_line
from multilora.forward.experts import implementation
from multilora.forward.transformers_decoder import ATTENTION, TransformersDecoder, own

_LOG = logging.getLogger(__name__)
_UNREAD = "multilora"  # our method of quantisation, as the library sees it
# Tensors that only quantised modules have.
_KINDS = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv", "_blocks")
_EXPANDED = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}  # by the library, while it loads


def load_transformers_decoder(
    folder: Path,
    base: BaseConfig,
    dtype: torch.dtype,
    device: torch.device,
    total_tokens: int,
    quantize: str = "auto",
) -> TransformersDecoder:
    """The model of a checkpoint folder, for sequences of up to `total_tokens`; StartupError names
    what is missing or wrong. `quantize` is the setting (see EngineConfig)."""
    assert isinstance(base, TransformersConfig)
    for name in varying_ropes(base.library):
        _LOG.info(
            "RoPE of type %s: its frequencies are those for %d tokens (max_total_tokens), for "
            "requests of any length", name, total_tokens,
        )  # fmt: skip
    if (folder / "adapter_config.json").is_file():
        raise StartupError(
            f"{folder} holds an adapter beside the base model, and transformers would load both; "
            "move adapter_config.json elsewhere and name its folder in --lora-adapters"
        )
    scheme = read_scheme(folder, more=("mxfp4",)).with_target(quantize)
    with CheckpointFiles(folder) as files:
        loading = _Loading(folder, base, dtype, device, files)
        config = with_fixed_rope(base.library, total_tokens)
        vars(config).pop("quantization_config", None)  # the library must not act on it
        if scheme.method in _EXPANDED and not scheme.target and loading.others():
            return loading.expanded(config, scheme)
        if scheme.method or scheme.target:
            return loading.quantised(config, scheme)
        return loading.dense(config)


class _Loading:
    def __init__(
        self,
        folder: Path,
        base: TransformersConfig,
        dtype: torch.dtype,
        device: torch.device,
        files: CheckpointFiles,
    ) -> None:
        self._folder = folder
        self._base = base
        self._dtype = dtype
        self._device = device
        self._files = files
        self._of_sites = set(modules(base.layer_sites))

    def others(self) -> list[str]:
        """Modules of layers that are quantised in the files, and no place for adapters: experts."""
        layers = tuple({_layers_of(module) for module in self._of_sites})
        found = {
            name.rpartition(".")[0]
            for name in self._files.names
            if name.startswith(layers) and name.endswith(_KINDS)
        }
        return sorted(found - self._of_sites)

    def dense(
        self, config: PretrainedConfig, quantised: QuantisedSites | None = None, **more: Any
    ) -> TransformersDecoder:
        """As the library loads it."""
        model = self._loaded(config, (), **more)
        if not quantised:
            self._files.check_floats(model.state_dict())

        def read(site: LoRASite) -> SiteWeight:
            weight = packed(_fused(model, site))
            if isinstance(weight, DenseWeight):
                weight = DenseWeight(own(weight.matrix), weight.bias)
            if quantised:
                size = site.in_features * site.out_features * self._dtype.itemsize
                quantised.add(weight, size)
            return weight

        return TransformersDecoder(self._base, model, read, quantised)

    def expanded(self, config: PretrainedConfig, scheme: Scheme) -> TransformersDecoder:
        """Dequantised, as there are no products for quantised experts."""
        config.quantization_config = self._base.library.quantization_config
        name = str(self._dtype).removeprefix("torch.")
        quantised = QuantisedSites(scheme.method, name, reason="experts are quantised, too")
        method = _EXPANDED[scheme.method](dequantize=True)
        return self.dense(config, quantised, quantization_config=method)

    def quantised(self, config: PretrainedConfig, scheme: Scheme) -> TransformersDecoder:
        """The linear layers of all sites are read by us."""
        if others := self.others():
            what = f"experts that are quantised with {scheme.method} ({others[0]})"
            raise StartupError(
                f"{self._folder}: --quantize {scheme.target} does not go with {what}; leave the "
                "flag out" if scheme.target else
                f"{self._folder}: {what} are not supported; serve a checkpoint in FP8, bfloat16, "
                "float16 or float32"
            )  # fmt: skip
        linears = SiteReader(self._files, scheme, self._dtype, self._device)
        head = linears.matrix(HEAD, self._base.vocab_size, self._base.hidden_size)
        unread = [*self._of_sites, *([HEAD] if head else [])]
        if head:
            config.tie_word_embeddings = False  # it stands in the files
        model = self._loaded(config, unread, quantization_config=_Unread(unread))
        self._files.check_floats(model.state_dict())
        if head:
            rows, columns = self._base.vocab_size, self._base.hidden_size
            layer = nn.Linear(columns, rows, bias=False, device="meta")
            layer.weight = nn.Parameter(head.dequantised(self._dtype), requires_grad=False)
            model.set_submodule(HEAD, layer)
        return TransformersDecoder(self._base, model, linears.read, linears.quantised)

    def _loaded(
        self, config: PretrainedConfig, unread: Iterable[str], **more: Any
    ) -> PreTrainedModel:
        library_logging.disable_progress_bar()
        before = library_logging.set_tqdm_hook(_progress)
        verbosity = library_logging.get_verbosity()
        library_logging.set_verbosity_error()  # _check says what its warning would
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(self._folder),
                config=config,
                dtype=self._dtype,
                device_map={"": self._device},
                key_mapping=TEXT_PART,
                attn_implementation=ATTENTION,
                experts_implementation=implementation(self._base.parameter_sites),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # _check speaks of them
                output_loading_info=True,
                **more,
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise StartupError(
                f"{self._folder}: transformers cannot load the weights ({first_line(error)}); "
                "download the checkpoint again"
            ) from None
        finally:
            library_logging.set_tqdm_hook(before)
            library_logging.set_verbosity(verbosity)
        model, report = loaded
        _check(self._folder, report, set(unread))
        return model.requires_grad_(False)


class _Unread(QuantizationConfigMixin):
    """Has the library leave out linear layers."""

    def __init__(self, linears: Iterable[str] = ()) -> None:
        self.quant_method = _UNREAD  # pyright: ignore[reportAttributeAccessIssue]
        self.linears = list(linears)


class _Omission(HfQuantizer):
    """What the library calls a quantiser: it may change a model before its weights are loaded."""

    quantization_config: _Unread

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        for name in self.quantization_config.linears:
            model.set_submodule(name, nn.Module())

    def is_serializable(self) -> Any:
        return False

    @property
    def is_trainable(self) -> Any:
        return False


register_quantization_config(_UNREAD)(_Unread)
register_quantizer(_UNREAD)(_Omission)


def _progress(factory: Callable[..., Any], given: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """In the place of the library's progress bar."""
    if given and options.get("desc") == "Loading weights":
        return watched(given[0], "reading the base model")
    return factory(*given, **options)


def _layers_of(module: str) -> str:
    """The path of the list of layers that a module is in: "model.layers."."""
    return "".join(
        f"{part}." for part in takewhile(lambda part: not part.isdigit(), module.split("."))
    )


def _check(folder: Path, report: dict[str, Any], unread: set[str]) -> None:
    """That the files and the class have the same tensors, but for those of modules that are left
    to us."""
    if missing := sorted(report["missing_keys"]):
        raise StartupError(
            f"{folder}: no weight file has tensor {missing[0]} ({len(missing)} are missing), which "
            "config.json calls for; download the checkpoint again or correct config.json"
        )
    if wrong := sorted(report["mismatched_keys"]):
        name, found, wanted = wrong[0]
        raise StartupError(
            f"{folder}: tensor {name} has shape {list(found)} but config.json makes it "
            f"{list(wanted)}; they are not of the same model"
        )
    unused = map(text_name, report["unexpected_keys"])
    report_unused(folder, [name for name in unused if name.rpartition(".")[0] not in unread])


def _fused(model: nn.Module, site: LoRASite) -> DenseWeight:
    """The matrices and biases of its slices one below the other."""
    linears: list[nn.Linear] = []
    for part in site.slices:
        linear = model.get_submodule(part.module)
        assert isinstance(linear, nn.Linear)
        linears.append(linear)
    matrices = [linear.weight.data for linear in linears]
    biases = [linear.bias.data for linear in linears if linear.bias is not None]
    bias = torch.cat(biases) if site.has_bias else None
    return DenseWeight(matrices[0] if len(matrices) == 1 else torch.cat(matrices), bias)

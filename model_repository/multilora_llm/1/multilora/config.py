"""Settings of the engine: defaults in config.pbtxt, overridden by environment variables.

A setting's parameter name in config.pbtxt is its field name; its environment variable is the same
in upper case (`max_total_tokens` ↔ `MAX_TOTAL_TOKENS`). Empty means unset.
"""

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from multilora.errors import StartupError

_LOG = logging.getLogger(__name__)
DEMO = Path(__file__).resolve().parent.parent / "demo"
DTYPES = ("auto", "float32", "bfloat16", "float16")
SWITCH = ("on", "off")
MODEL_IMPLS = ("auto", "native", "transformers")
CUDA_GRAPHS = ("off", "decode", "full")
QUANTIZE = ("auto", "fp8", "int8", "int4", "awq", "gptq", "compressed-tensors")
DEVICES = ("auto", "cpu", "cuda")
_AUTO_SIZES = ("adapter_memory", "kv_cache_memory")  # "auto" is 0
_RENAMED = {  # values of earlier versions, of TGI and of vLLM
    ("cuda_graphs", "on"): "full",
    ("quantize", "eetq"): "int8",
    ("model_impl", "vllm"): "native",
}
_OTHER_QUANTIZE = {  # of TGI, which mean something else; what to choose instead
    "bitsandbytes": "int8, which quantises weights alone",
    "bitsandbytes-nf4": "int4, whose steps are even, and of which two are a byte too",
    "bitsandbytes-fp4": "int4, whose steps are even, and of which two are a byte too",
    "exl2": "int4, or a checkpoint in the format of gptq or awq",
    "marlin": "int4, or a checkpoint in the format of gptq or awq",
}
_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}
_FLAG_NOTE = "set it by flag, environment variable or config.pbtxt parameter"


@dataclass(frozen=True)
class EngineConfig:
    """Checked settings. Sizes are in bytes, lengths in tokens; 0 leaves the choice to the engine.

    `model_id` "" is the embedded demo. `model_impl` says which class computes it: ours, for a few
    families ("native"), or that of the transformers library; "auto" is ours where there is one.
    `generation_config` is the folder of the file with the sampling defaults of the OpenAI API;
    "auto" is the base model's, "none" no folder.
    `quantize` fp8, int8 and int4 quantise the base model's linear layers at start; "auto" takes a
    checkpoint as it is, quantised or not, and the other values only one that is quantised so.
    `max_total_tokens` 0 is what the base model allows, at most 4096; `max_input_tokens` 0 is one
    less. `threads` 0 keeps torch's own number of CPU threads.

    `lora_target_modules` are names, separated by commas or spaces: of modules that adapters act on,
    "all" for each that there is, "auto" for those of the `lora_adapters`. The linear modules of the
    layers are always among them, so that it matters for "embed_tokens" and "lm_head" alone, and for
    parameters ("experts.down_proj"), which "all" leaves out.

    `adapters_dir` holds folders that are adapters by their relative names; `adapter_allow` is a
    comma-separated list of patterns of Hub ids and URLs that a request may load (none: ""). A
    download may have `adapter_max_size` bytes and take `adapter_download_timeout` seconds, and
    `adapter_loads` adapters are brought at once; a request waits `adapter_timeout` seconds for its
    own. Changes of adapters need the `admin_key`, if there is one: a secret, and so read from the
    environment alone, because Triton shows a model's parameters to everybody. `adapter_metrics` is
    how many adapters have figures of their own on /metrics.

    On a GPU `gpu_memory_utilization` is the part of its whole memory that may be in use, by others
    too; `adapter_memory` and `kv_cache_memory` 0 share what is left of it (see memory_plan), on a
    CPU they are 1 GiB each. `cuda_graphs` says which passes a GPU replays: those that only decode,
    or all but large ones ("full", and "on" means the same).
    """

    model_id: str = ""
    revision: str = ""
    generation_config: str = "auto"
    lora_adapters: str = ""
    dtype: str = "auto"
    model_impl: str = "auto"
    device: str = "auto"
    quantize: str = "auto"
    max_input_tokens: int = 0
    max_total_tokens: int = 0
    max_batch_prefill_tokens: int = 2048
    max_concurrent_requests: int = 128
    max_running_requests: int = 64
    max_lora_rank: int = 128
    lora_target_modules: str = "auto"
    gpu_memory_utilization: float = 0.9
    adapter_memory: int = 0
    adapter_host_memory: int = 4 << 30
    adapters_dir: str = ""
    adapter_allow: str = ""
    adapter_max_size: int = 4 << 30
    adapter_download_timeout: int = 1800
    adapter_timeout: int = 600
    adapter_loads: int = 4
    adapter_admin: str = "on"
    admin_key: str = field(default="", repr=False)
    adapter_metrics: int = 100
    kv_cache_memory: int = 0
    kv_block_size: int = 16
    cuda_graphs: str = "full"
    threads: int = 0

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("model_impl", self.model_impl, MODEL_IMPLS)
        _one_of("device", self.device, DEVICES)
        if self.quantize in _OTHER_QUANTIZE:
            raise StartupError(
                f"quantize {self.quantize} is not supported; choose "
                f"{_OTHER_QUANTIZE[self.quantize]} ({_FLAG_NOTE})"
            )
        _one_of("quantize", self.quantize, QUANTIZE)
        _one_of("adapter_admin", self.adapter_admin, SWITCH)
        _one_of("cuda_graphs", self.cuda_graphs, CUDA_GRAPHS)
        for name in (
            "max_batch_prefill_tokens",
            "max_concurrent_requests",
            "max_running_requests",
            "max_lora_rank",
            "adapter_host_memory",
            "adapter_max_size",
            "adapter_download_timeout",
            "adapter_timeout",
            "adapter_loads",
        ):
            if getattr(self, name) < 1:
                raise StartupError(
                    f"{name} must be positive; got {getattr(self, name)} ({_FLAG_NOTE})"
                )
        for name in (
            "max_input_tokens",
            "max_total_tokens",
            "threads",
            "adapter_metrics",
            *_AUTO_SIZES,
        ):
            if getattr(self, name) < 0:
                raise StartupError(
                    f"{name} must not be negative; got {getattr(self, name)} ({_FLAG_NOTE})"
                )
        if not 0 < self.gpu_memory_utilization <= 1:  # neither is nan
            raise StartupError(
                "gpu_memory_utilization must be a part of the GPU's memory, above 0 and at most 1; "
                f"got {self.gpu_memory_utilization} ({_FLAG_NOTE})"
            )
        if self.kv_block_size < 8 or self.kv_block_size & (self.kv_block_size - 1):
            raise StartupError(
                f"kv_block_size must be a power of two of at least 8; "
                f"got {self.kv_block_size} ({_FLAG_NOTE})"
            )

    @staticmethod
    def from_settings(parameters: Mapping[str, str], environ: Mapping[str, str]) -> "EngineConfig":
        """Read config.pbtxt `parameters`, overridden by `environ`; raises StartupError."""
        values: dict[str, str | int | float] = {}
        for each in fields(EngineConfig):
            raw = environ.get(each.name.upper(), "").strip()
            if each.name != "admin_key":
                raw = raw or parameters.get(each.name, "").strip()
            if not raw:
                continue
            if each.type in (str, "str"):
                values[each.name] = _RENAMED.get((each.name, raw), raw)
            elif each.type in (float, "float"):
                values[each.name] = _parse_number(each.name, raw)
            elif each.name in _AUTO_SIZES and raw.lower() == "auto":
                values[each.name] = 0
            elif each.name.endswith(("_memory", "_size")):
                values[each.name] = parse_bytes(each.name, raw)
            else:
                values[each.name] = _parse_int(each.name, raw)
        return EngineConfig(**values)  # type: ignore[arg-type]

    def token_limits(self, max_position_embeddings: int) -> tuple[int, int]:
        """(max_input_tokens, max_total_tokens) for a base model; raises StartupError.

        A total beyond what the model has positions for is lowered, with a warning: the command
        line of another server, or of a larger model, then works.
        """
        total = self.max_total_tokens or min(max_position_embeddings, 4096)
        if total > max_position_embeddings:
            _LOG.warning(
                "max_total_tokens %d exceeds the base model's max_position_embeddings; %d are used",
                total, max_position_embeddings,
            )  # fmt: skip
            total = max_position_embeddings
            return min(self.max_input_tokens or total, total - 1), total
        limit = self.max_input_tokens or total - 1
        if not 1 <= limit < total:
            raise StartupError(
                f"max_input_tokens {limit} must be at least 1 and below max_total_tokens {total}"
            )
        return limit, total


def parse_bytes(name: str, text: str) -> int:
    """ "512MB", "2GiB", "1073741824" → bytes; raises StartupError naming the setting."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    size = float(match[1]) * _UNITS.get(match[2], math.nan) if match else math.nan
    if not math.isfinite(size):
        raise StartupError(
            f"{name} must be a size such as 512MB or 2GiB; got {text!r} ({_FLAG_NOTE})"
        )
    return int(size)


def _parse_int(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise StartupError(f"{name} must be a whole number; got {text!r} ({_FLAG_NOTE})") from None


def _parse_number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise StartupError(f"{name} must be a number; got {text!r} ({_FLAG_NOTE})")
    return value


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise StartupError(
            f"{name} must be one of {', '.join(allowed)}; got {value!r} ({_FLAG_NOTE})"
        )

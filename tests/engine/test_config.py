"""EngineConfig: precedence, units, and one clear line for each mistake."""

import re

import pytest

from multilora.config import DEMO, EngineConfig, parse_bytes
from multilora.errors import StartupError


def test_environment_overrides_parameters_and_empty_means_unset():
    config = EngineConfig.from_settings(
        {"max_total_tokens": "100", "dtype": "float32", "model_id": "from-pbtxt"},
        {"MAX_TOTAL_TOKENS": "64", "MODEL_ID": "", "KV_CACHE_MEMORY": "2MiB"},
    )
    assert config.max_total_tokens == 64
    assert config.dtype == "float32"
    assert config.model_id == "from-pbtxt"
    assert config.kv_cache_memory == 2 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [("1073741824", 1 << 30), ("512MB", 512 * 10**6), ("1.5 GiB", 3 << 29), ("8kib", 8192)],
)
def test_sizes(text: str, size: int):
    assert parse_bytes("adapter_memory", text) == size


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"DTYPE": "int8"}, ["dtype", "bfloat16", "int8"]),
        ({"QUANTIZE": "int3"}, ["quantize", "auto, fp8, int8, int4, awq, gptq", "int3"]),
        ({"QUANTIZE": "bitsandbytes-nf4"}, ["quantize bitsandbytes-nf4", "choose int4"]),
        ({"QUANTIZE": "marlin"}, ["quantize marlin", "in the format of gptq or awq"]),
        ({"MODEL_IMPL": "ours"}, ["model_impl", "auto, native, transformers", "ours"]),
        ({"DEVICE": "tpu"}, ["device", "cuda", "tpu"]),
        ({"MAX_TOTAL_TOKENS": "many"}, ["max_total_tokens", "whole number", "many"]),
        ({"ADAPTER_MEMORY": "lots"}, ["adapter_memory", "512MB", "lots"]),
        ({"ADAPTER_HOST_MEMORY": "0"}, ["adapter_host_memory", "positive"]),
        ({"ADAPTER_HOST_MEMORY": "auto"}, ["adapter_host_memory", "512MB", "auto"]),
        ({"GPU_MEMORY_UTILIZATION": "0"}, ["gpu_memory_utilization", "above 0", "0"]),
        ({"GPU_MEMORY_UTILIZATION": "-0.1"}, ["gpu_memory_utilization", "above 0", "-0.1"]),
        ({"GPU_MEMORY_UTILIZATION": "1.01"}, ["gpu_memory_utilization", "at most 1", "1.01"]),
        ({"GPU_MEMORY_UTILIZATION": "90"}, ["gpu_memory_utilization", "at most 1", "90"]),
        ({"GPU_MEMORY_UTILIZATION": "90%"}, ["gpu_memory_utilization", "a number", "90%"]),
        ({"GPU_MEMORY_UTILIZATION": "nan"}, ["gpu_memory_utilization", "a number", "nan"]),
        ({"CUDA_GRAPHS": "1,2,4"}, ["cuda_graphs", "off, decode, full", "1,2,4"]),
        ({"KV_BLOCK_SIZE": "12"}, ["kv_block_size", "power of two"]),
        ({"MAX_INPUT_TOKENS": "-1"}, ["max_input_tokens", "negative"]),
    ],
)
def test_mistakes_name_the_setting_and_the_remedy(environ: dict[str, str], words: list[str]):
    with pytest.raises(StartupError) as caught:
        EngineConfig.from_settings({}, environ)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [("cuda_graphs", "on", "full"), ("quantize", "eetq", "int8"), ("model_impl", "vllm", "native")],
)
def test_values_that_others_call_otherwise(name: str, value: str, meant: str):
    config = EngineConfig.from_settings({}, {name.upper(): value})
    assert getattr(config, name) == meant


def test_sizes_of_pools_may_be_left_to_the_engine():
    for text in ("auto", "AUTO", "0", ""):
        config = EngineConfig.from_settings(
            {"kv_cache_memory": text, "adapter_memory": text, "gpu_memory_utilization": "1"}, {}
        )
        assert (config.kv_cache_memory, config.adapter_memory) == (0, 0)
        assert config.gpu_memory_utilization == 1.0
    for name in ("kv_cache_memory", "adapter_memory"):
        with pytest.raises(
            StartupError, match=f"{name} must not be negative; got -1 .set it by flag"
        ):
            EngineConfig(**{name: -1})  # type: ignore[arg-type]
    with pytest.raises(StartupError, match="above 0 and at most 1; got nan"):
        EngineConfig(gpu_memory_utilization=float("nan"))


def test_config_pbtxt_states_every_default():
    text = (DEMO.parent.parent / "config.pbtxt").read_text()
    pattern = r'parameters \{ key: "(\w+)" value: \{ string_value: "(.*)" \} \}'
    parameters = dict(re.findall(pattern, text))
    assert parameters.keys() == EngineConfig.__dataclass_fields__.keys() - {"admin_key"}
    assert EngineConfig.from_settings(parameters, {}) == EngineConfig()


def test_token_limits_follow_the_base_model():
    assert EngineConfig().token_limits(512) == (511, 512)
    assert EngineConfig().token_limits(100_000) == (4095, 4096)
    assert EngineConfig(max_input_tokens=10, max_total_tokens=20).token_limits(512) == (10, 20)
    assert EngineConfig(max_total_tokens=513).token_limits(512) == (511, 512)
    longer = EngineConfig(max_input_tokens=2048, max_total_tokens=4096)
    assert longer.token_limits(1024) == (1023, 1024)
    assert EngineConfig(max_input_tokens=9, max_total_tokens=4096).token_limits(1024) == (9, 1024)
    with pytest.raises(StartupError, match="below max_total_tokens"):
        EngineConfig(max_input_tokens=20, max_total_tokens=20).token_limits(512)


def test_the_admin_key_is_read_from_the_environment_alone_and_never_shown() -> None:
    config = EngineConfig.from_settings({"admin_key": "from pbtxt"}, {"ADMIN_KEY": " a secret "})
    assert config.admin_key == "a secret" and "secret" not in repr(config)
    assert EngineConfig.from_settings({"admin_key": "from pbtxt"}, {}).admin_key == ""

"""EngineConfig: precedence, units, and one clear line for each mistake."""

import pytest

from multilora.config import EngineConfig, parse_bytes
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
        ({"DEVICE": "tpu"}, ["device", "cuda", "tpu"]),
        ({"MAX_TOTAL_TOKENS": "many"}, ["max_total_tokens", "whole number", "many"]),
        ({"ADAPTER_MEMORY": "lots"}, ["adapter_memory", "512MB", "lots"]),
        ({"ADAPTER_MEMORY": "0"}, ["adapter_memory", "positive"]),
        ({"KV_BLOCK_SIZE": "12"}, ["kv_block_size", "power of two"]),
        ({"MAX_INPUT_TOKENS": "-1"}, ["max_input_tokens", "negative"]),
    ],
)
def test_mistakes_name_the_setting_and_the_remedy(environ: dict[str, str], words: list[str]):
    with pytest.raises(StartupError) as caught:
        EngineConfig.from_settings({}, environ)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_token_limits_follow_the_base_model():
    assert EngineConfig().token_limits(512) == (511, 512)
    assert EngineConfig().token_limits(100_000) == (4095, 4096)
    assert EngineConfig(max_input_tokens=10, max_total_tokens=20).token_limits(512) == (10, 20)
    with pytest.raises(StartupError, match="max_position_embeddings 512"):
        EngineConfig(max_total_tokens=513).token_limits(512)
    with pytest.raises(StartupError, match="below max_total_tokens"):
        EngineConfig(max_input_tokens=20, max_total_tokens=20).token_limits(512)

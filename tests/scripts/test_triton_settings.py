"""Flags of the launcher ↔ environment variables of the engine."""

from pathlib import Path

import pytest

from multilora.config import EngineConfig
from triton_install import REPOSITORY, LaunchError
from triton_server import Ports
from triton_settings import engine_environment, model_repository, parse_flags, ports

NAMES = ["MODEL_ID", "LORA_ADAPTERS", "MAX_INPUT_TOKENS", "DTYPE", "HTTP_PORT", "MODEL_REPOSITORY",
         "GPU_MEMORY_UTILIZATION"]  # fmt: skip


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_flags_become_settings_of_the_engine() -> None:
    given = {
        "--model-id": "org/base",
        "--lora-adapters": "a=org/a@v1,b",
        "--max-input-length": "7",
        "--max-total-tokens": "9",
        "--adapter-memory": "64MiB",
        "--dtype": "float32",
        "--cuda-memory-fraction": "0.75",
        "--cuda-graphs": "off",
        "--kv-cache-memory": "auto",
        "--max-concurrent-requests": "3",
        "--threads": "1",
    }
    flags = parse_flags([word for pair in given.items() for word in pair])
    config = EngineConfig.from_settings({}, engine_environment(flags))
    assert (config.model_id, config.lora_adapters) == ("org/base", "a=org/a@v1,b")
    assert (config.max_input_tokens, config.max_total_tokens) == (7, 9)
    assert (config.adapter_memory, config.dtype) == (64 << 20, "float32")
    assert (config.max_concurrent_requests, config.threads) == (3, 1)
    assert (config.gpu_memory_utilization, config.cuda_graphs) == (0.75, "off")
    assert config.kv_cache_memory == 0


def test_the_part_of_a_gpu_has_the_names_of_tgi_and_vllm() -> None:
    for flag in ("--gpu-memory-utilization", "--cuda-memory-fraction"):
        assert engine_environment(parse_flags([flag, "0.5"]))["GPU_MEMORY_UTILIZATION"] == "0.5"


def test_nothing_given_sets_nothing() -> None:
    flags = parse_flags([])
    assert engine_environment(flags).keys().isdisjoint(NAMES)
    assert ports(flags) == Ports(8000, 8001, 8002)
    assert model_repository(flags) == REPOSITORY / "model_repository"


def test_a_flag_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DTYPE", "float16")
    monkeypatch.setenv("HTTP_PORT", "9000")
    assert engine_environment(parse_flags([]))["DTYPE"] == "float16"
    assert ports(parse_flags([])).http == 9000
    assert engine_environment(parse_flags(["--dtype", "bfloat16"]))["DTYPE"] == "bfloat16"
    assert ports(parse_flags(["--http-port", "0"])).http == 0


def test_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server runs in another folder than the user."""
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    given = ["--model-id", "base", "--lora-adapters", "x=./x,y=org/y,z=../z@r,w"]
    environment = engine_environment(parse_flags(given))
    assert environment["MODEL_ID"] == str(tmp_path / "base")
    assert environment["LORA_ADAPTERS"] == f"x={tmp_path}/x,y=org/y,z={tmp_path.parent}/z@r,w"


def test_a_port_variable_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PORT", "http")
    with pytest.raises(LaunchError, match="--http-port must be a port number"):
        ports(parse_flags([]))


def test_one_port_twice() -> None:
    port = Ports().resolve().http
    with pytest.raises(LaunchError, match=rf"port {port} \(--grpc-port\) is given twice"):
        Ports(port, port, 0).resolve()


@pytest.mark.parametrize(("given", "setting"), [("0", "off"), ("1,2,4", "on"), ("off", "off")])
def test_cuda_graphs_as_tgi_gives_them(given: str, setting: str) -> None:
    assert engine_environment(parse_flags(["--cuda-graphs", given]))["CUDA_GRAPHS"] == setting

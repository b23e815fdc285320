"""Flags of the launcher ↔ environment variables of the engine."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from launcher.flags import engine_environment, model_repository, parse_flags, ports
from launcher.process import LaunchError
from launcher.repository import REPOSITORY
from launcher.triton.ports import Ports
from multilora.config import EngineConfig


def test_flags_become_settings_of_the_engine() -> None:
    given = {
        "--model-id": "org/base",
        "--lora-adapters": "a=org/a@v1,b",
        "--max-input-length": "7",
        "--max-total-tokens": "9",
        "--adapter-memory": "64MiB",
        "--dtype": "float32",
        "--model-impl": "transformers",
        "--cuda-memory-fraction": "0.75",
        "--cuda-graphs": "off",
        "--kv-cache-memory": "auto",
        "--max-concurrent-requests": "3",
        "--threads": "1",
        "--quantize": "eetq",
    }
    flags = parse_flags([word for pair in given.items() for word in pair])
    config = EngineConfig.from_settings({}, engine_environment(flags))
    assert (config.model_id, config.lora_adapters) == ("org/base", "a=org/a@v1,b")
    assert (config.max_input_tokens, config.max_total_tokens) == (7, 9)
    assert (config.adapter_memory, config.dtype) == (64 << 20, "float32")
    assert config.model_impl == "transformers"
    assert (config.max_concurrent_requests, config.threads) == (3, 1)
    assert (config.gpu_memory_utilization, config.cuda_graphs) == (0.75, "off")
    assert config.kv_cache_memory == 0
    assert config.quantize == "int8"  # which TGI calls eetq


def test_the_part_of_a_gpu_has_the_names_of_tgi_and_vllm() -> None:
    for flag in ("--gpu-memory-utilization", "--cuda-memory-fraction"):
        changed = engine_environment(parse_flags([flag, "0.5"], {}), {})
        assert changed == {"GPU_MEMORY_UTILIZATION": "0.5"}


def test_nothing_given_sets_nothing() -> None:
    flags = parse_flags([], {})
    assert engine_environment(flags, {}) == {}
    assert ports(flags) == Ports(8000, 8001, 8002)
    assert model_repository(flags) == REPOSITORY / "model_repository"


def test_a_flag_wins_over_its_variable() -> None:
    environ = {"DTYPE": "float16", "HTTP_PORT": "9000", "MODEL_ID": ""}
    assert engine_environment(parse_flags([], environ), {}) == {"DTYPE": "float16"}
    assert ports(parse_flags([], environ)).http == 9000
    flags = parse_flags(["--dtype", "bfloat16", "--http-port", "0"], environ)
    assert engine_environment(flags, {}) == {"DTYPE": "bfloat16"}
    assert ports(flags).http == 0


def test_variables_by_the_names_of_tgi() -> None:
    environ = {"MAX_INPUT_LENGTH": "7", "CUDA_MEMORY_FRACTION": "0.75", "NO_GATEWAY": "1",
               "TRITON_HOSTNAME": "0.0.0.0", "HOSTNAME": "4f2a", "NO_RESTART": "true"}  # fmt: skip
    flags = parse_flags([], environ)
    assert engine_environment(flags, {}) == {
        "MAX_INPUT_TOKENS": "7",
        "GPU_MEMORY_UTILIZATION": "0.75",
    }
    assert (flags.no_gateway, flags.triton_hostname, flags.hostname) == (True, "0.0.0.0", None)
    assert flags.no_restart
    both = {**environ, "MAX_INPUT_TOKENS": "8"}
    assert engine_environment(parse_flags([], both), {})["MAX_INPUT_TOKENS"] == "8"


def test_the_folder_of_downloads_has_two_names(tmp_path: Path) -> None:
    tgi, hub = {"HUGGINGFACE_HUB_CACHE": f"{tmp_path}/a"}, {"HF_HUB_CACHE": f"{tmp_path}/b"}
    flag = ["--huggingface-hub-cache", f"{tmp_path}/c"]
    for arguments, environ, name in (([], tgi, "a"), ([], tgi | hub, "b"), (flag, tgi | hub, "c")):
        changed = engine_environment(parse_flags(arguments, environ), environ)
        assert changed == {"HF_HUB_CACHE": f"{tmp_path}/{name}"}


# Permissions mean nothing to root, so the program becomes nobody once it is imported.
AS_NOBODY = """
import os, shutil, sys  # argparse imports shutil when nobody may read Python any more
sys.path[:0] = %r
from launcher.flags import engine_environment, parse_flags
if os.getuid() == 0:
    os.setuid(65534)
print(engine_environment(parse_flags([], os.environ), os.environ))
"""


def test_downloads_go_where_they_can_be_written() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        environ = {"HUGGINGFACE_HUB_CACHE": folder, "HF_HOME": "/home/x"}
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY % sys.path],
            env=environ, capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert done.stdout.strip() == "{'HF_HUB_CACHE': '/home/x/hub'}"
    assert f"may not write to {folder}" in done.stderr


def test_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server runs in another folder than the user."""
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    given = ["--model-id", "base", "--lora-adapters", "x=./x,y=org/y,z = ../z@r,w,s3://b/x=./y"]
    environment = engine_environment(parse_flags(given))
    assert environment["MODEL_ID"] == str(tmp_path / "base")
    for source, want in (
        ("auto", "auto"),
        ("none", "none"),
        ("./defaults", f"{tmp_path}/defaults"),
    ):
        environment_of_source = engine_environment(parse_flags(["--generation-config", source]))
        assert environment_of_source["GENERATION_CONFIG"] == want
    url = "s3://b/x=./y"
    assert environment["LORA_ADAPTERS"] == f"x={tmp_path}/x,y=org/y,z={tmp_path.parent}/z@r,w,{url}"


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        ([], {"HTTP_PORT": "http"}, "variable HTTP_PORT: must be a port number from 0 to 65535"),
        (["--grpc-port=65536"], {}, "argument --grpc-port: must be a port number from 0 to"),
        ([], {"MAX_INPUT_LENGTH": "x"}, "variable MAX_INPUT_LENGTH: invalid int value: 'x'"),
        ([], {"LOG_VERBOSE": "no"}, "variable LOG_VERBOSE: must be true, 1, false or 0; got 'no'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environ: dict[str, str],
    message: str,
) -> None:
    with pytest.raises(SystemExit):
        parse_flags(arguments, environ)
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"serve.py: error: {message}")


def test_one_port_twice() -> None:
    port = Ports().resolve().http
    with pytest.raises(LaunchError, match=rf"port {port} \(--grpc-port\) is given twice"):
        Ports(port, port, 0).resolve()


@pytest.mark.parametrize(("given", "setting"), [("0", "off"), ("1,2,4", "full"), ("off", "off")])
def test_cuda_graphs_as_tgi_gives_them(given: str, setting: str) -> None:
    assert engine_environment(parse_flags(["--cuda-graphs", given]))["CUDA_GRAPHS"] == setting


def test_the_engine_hears_of_the_admin_key() -> None:
    assert engine_environment(parse_flags(["--admin-key", " root "], {}), {}) == {
        "ADMIN_KEY": "root"
    }

"""NVIDIA's perf_analyzer drives the server, as teams that measure Triton models will."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from launcher.repository import REPOSITORY
from launcher.triton.install import find_install
from launcher.triton.server import TritonServer
from support.e2e.triton import Example, eventually, metrics, token_ids, wait_until_idle

WHEEL = "tritonclient==2.50.0"  # the last release with the binary, in its manylinux wheel
CACHE = REPOSITORY / ".cache" / "perf_analyzer"
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
REQUESTS = 32
TOKENS = 16


@pytest.fixture(scope="session")
def perf_analyzer() -> Path:
    """The binary from PyPI, with the libraries it needs linked beside it."""
    binary = CACHE / "perf_analyzer"
    if not binary.is_file():
        _extract(_download(), binary)
    search = find_install().environment.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    for name, pattern in LIBRARIES.items():
        for library in Path(search[0]).glob(pattern):
            (CACHE / name).unlink(missing_ok=True)
            (CACHE / name).symlink_to(library)
    return binary


def test_streaming_with_another_adapter_per_row(
    server: TritonServer, demo: list[Example], perf_analyzer: Path, tmp_path: Path
) -> None:
    one_each = {example.adapter_id: example for example in demo}  # neighbours differ
    rows = [_row(server, example) for example in one_each.values()]
    (tmp_path / "rows.json").write_text(json.dumps({"data": rows}))
    flags = {
        "-m": "multilora_llm",
        "-i": "grpc",
        "-u": server.grpc_address,
        "--input-data": str(tmp_path / "rows.json"),
        "--concurrency-range": "8",
        "--request-count": str(REQUESTS),
        "--profile-export-file": str(tmp_path / "profile.json"),
    }
    requests = _profile([str(perf_analyzer), "--streaming", "--async", *sum(flags.items(), ())])
    assert len(requests) >= REQUESTS
    assert {request["request_inputs"]["adapter_id"] for request in requests} == set(one_each)
    for request in requests:
        ids = [output["output_ids"] for output in request["response_outputs"]]
        flat = [i for each in ids for i in (each if isinstance(each, list) else [each])]
        assert len(flat) == TOKENS
    wait_until_idle(server)
    adapters = len(one_each) - 1
    together = eventually(lambda: metrics(server)["multilora_max_adapters_in_batch"], adapters)
    assert together == adapters


def _profile(command: list[str]) -> list[dict[str, Any]]:
    """The requests in the export. perf_analyzer 2.50 now and then succeeds and exports nothing."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(CACHE)}
    text = printed = ""
    for _ in range(3):
        ended = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=120, check=False
        )
        printed = ended.stdout + ended.stderr
        assert ended.returncode == 0, printed
        if text := Path(command[-1]).read_text():
            break
        Path(command[-1]).unlink()  # it refuses to write over a file
    assert text, printed
    return json.loads(text)["experiments"][0]["requests"]


def _row(server: TritonServer, example: Example) -> dict[str, Any]:
    ids = token_ids(server, example.prompt)
    return {
        "input_ids": {"content": ids, "shape": [len(ids)]},
        "adapter_id": [example.adapter_id],
        "max_tokens": [TOKENS],
        "stream": [True],
        "ignore_eos": [True],
    }


def _download() -> Path:
    """The wheel from the package index; skips when the index cannot be reached."""
    command = f"download --quiet --no-deps --only-binary :all: --platform manylinux1_x86_64 {WHEEL}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", *command.split()]
    ended = subprocess.run(
        [*pip, "--dest", str(CACHE)], capture_output=True, text=True, timeout=300, check=False
    )
    if ended.returncode:
        pytest.skip(f"perf_analyzer: pip cannot download {WHEEL}: {ended.stderr.strip()[-300:]}")
    return next(CACHE.glob("tritonclient-*manylinux*.whl"))


def _extract(wheel: Path, binary: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/bin/perf_analyzer"))
        part = binary.with_suffix(".part")
        part.write_bytes(archive.read(name))
    part.chmod(0o755)
    part.rename(binary)
    wheel.unlink()

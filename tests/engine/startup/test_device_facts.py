"""What gather makes of what driver and torch answer on a machine with a GPU."""

from pathlib import Path

import pytest
import torch

from multilora.startup import device as gpu_check
from multilora.startup.device import GpuFacts, gather, problem

OPEN_MODULE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n"
    "GCC version:  gcc version 12.2.0\n"
)
CLOSED_MODULE = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
)


class Library:
    def __init__(self, name: str) -> None:
        assert name == "libcuda.so.1"

    def cuDriverGetVersion(self, pointer: object) -> int:
        pointer._obj.value = 12080  # type: ignore[attr-defined]
        return 0


class Properties:
    name, major, minor = "NVIDIA L4", 8, 9


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The driver's version file on such a machine."""
    version = tmp_path / "version"
    version.write_text(OPEN_MODULE)
    monkeypatch.setattr(gpu_check, "_DRIVER_FILE", version)
    monkeypatch.setattr(gpu_check, "_DEVICE_FILES", (version,))
    monkeypatch.setattr(gpu_check.ctypes, "CDLL", Library)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_86", "sm_90"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (5 << 30, 24 << 30))
    monkeypatch.setenv("CC", "gcc")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return version


@pytest.mark.usefixtures("version")
def test_a_gpu_that_can_be_used():
    found = gather()
    assert found == GpuFacts(
        device_file=True,
        visible=None,
        torch_version=torch.__version__,
        torch_cuda=(12, 8),
        driver="570.86.15",
        driver_cuda=(12, 8),
        openai_triton=True,
        c_compiler=True,
        name="NVIDIA L4",
        capability=(8, 9),
        architectures=("sm_86", "sm_90"),
        memory=(5 << 30, 24 << 30),
    )
    assert problem(found) == ""


@pytest.mark.usefixtures("version")
def test_cuda_that_does_not_start(monkeypatch: pytest.MonkeyPatch):
    def broken() -> None:
        raise RuntimeError("CUDA error: system not yet initialized\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "init", broken)
        found = gather()
    assert found.error == "CUDA error: system not yet initialized" and found.name == ""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gather().error == "it sees no GPU"


def test_driver_files_and_compiler(version: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    version.write_text(CLOSED_MODULE)
    assert gather().driver == "535.104.05"
    version.unlink()
    assert (gather().driver, gather().device_file) == ("", False)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not gather().c_compiler

"""The check of driver, CUDA, torch and GPU: one line that says what is wrong, for each case."""

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from multilora.errors import StartupError
from multilora.startup import device as gpu_check
from multilora.startup.device import (
    GpuFacts,
    choose_device,
    compute_alone,
    describe,
    gather,
    problem,
    runs_on,
)

GOOD = GpuFacts(
    device_file=True,
    visible=None,
    torch_version="2.11.0+cu128",
    torch_cuda=(12, 8),
    driver="570.86.15",
    driver_cuda=(12, 8),
    openai_triton=True,
    c_compiler=True,
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    architectures=("sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"),
    memory=(79 << 30, 80 << 30),
)
ERROR = "CUDA unknown error - this may be due to an incorrectly set up environment"


def facts(**changes: object) -> GpuFacts:
    return dataclasses.replace(GOOD, **changes)  # type: ignore[arg-type]


NO_DRIVER = facts(driver="", driver_cuda=None, device_file=False, error="Found no NVIDIA driver")
WRONG: dict[str, tuple[GpuFacts, list[str]]] = {
    "torch for CPUs": (
        facts(torch_version="2.11.0+cpu", torch_cuda=None, error="Torch not compiled with CUDA"),
        ["torch 2.11.0+cpu is a build for CPUs", "install a CUDA build"],
    ),
    "no driver": (NO_DRIVER, ["no NVIDIA driver", "install it", "--gpus all"]),
    "no driver library": (
        facts(driver_cuda=None, error="Found no NVIDIA driver"),
        ["no driver library (libcuda.so.1)", "--gpus all"],
    ),
    "driver of the host only": (
        facts(driver_cuda=None, device_file=False, error="Found no NVIDIA driver"),
        ["there is a GPU but no driver library", "--gpus all"],
    ),
    "old driver": (
        facts(driver="470.57.02", driver_cuda=(11, 4), error="The NVIDIA driver is too old"),
        ["driver 470.57.02 is for CUDA 11.4", "torch 2.11.0+cu128 needs CUDA 12", "CUDA 11"],
    ),
    "old driver of unknown version": (
        facts(driver="", driver_cuda=(12, 9), torch_cuda=(13, 0), error="too old"),
        ["the NVIDIA driver is for CUDA 12.9", "needs CUDA 13", "update the driver"],
    ),
    "hidden": (
        facts(visible="7", error="it sees no GPU"),
        ["CUDA_VISIBLE_DEVICES='7'", "unset it", "nvidia-smi -L"],
    ),
    "broken": (facts(error=ERROR), [ERROR, "nvidia-smi"]),
    "old GPU": (
        facts(name="Tesla V100", capability=(7, 0)),
        ["Tesla V100 has compute capability 7.0", "8.0 is the least", "choose another GPU"],
    ),
    "almost": (facts(name="Tesla T4", capability=(7, 5)), ["7.5", "8.0 is the least"]),
    "newer than torch": (
        facts(capability=(10, 0), architectures=("sm_80", "sm_90", "sm_90a")),
        ["no code for NVIDIA H100", "compute capability 10.0", "sm_80, sm_90", "install a build"],
    ),
    "no OpenAI Triton": (facts(openai_triton=False), ["OpenAI Triton", "pip install triton"]),
    "no C compiler": (facts(c_compiler=False), ["no C compiler", "gcc", "CC"]),
}


def test_nothing_is_wrong_with_a_good_gpu():
    assert problem(GOOD) == ""
    line = describe(GOOD)
    for word in ("H100", "9.0", "570.86.15", "2.11.0+cu128", "12.8", "79.00 GiB of 80.00 GiB"):
        assert word in line
    assert "unknown version" in describe(facts(driver=""))


@pytest.mark.parametrize("case", WRONG)
def test_each_mistake_is_one_line_with_a_remedy(case: str):
    wrong, words = WRONG[case]
    line = problem(wrong)
    assert all(word in line for word in words), line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("driver_cuda", "torch_cuda", "fine"),
    [((12, 0), (12, 8), True), ((13, 1), (12, 8), True), ((12, 9), (13, 0), False)],
)
def test_a_driver_serves_its_major_version_and_older_ones(
    driver_cuda: tuple[int, int], torch_cuda: tuple[int, int], fine: bool
):
    line = problem(facts(driver_cuda=driver_cuda, torch_cuda=torch_cuda, error=ERROR))
    assert (ERROR in line) == fine
    assert ("update the driver" in line) != fine


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        ("sm_80", (8, 0), True),
        ("sm_80", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_100a", (10, 3), False),
        ("sm_100f", (10, 3), True),
        ("sm_100f", (12, 0), False),
        ("sm_120", (12, 1), True),
        ("compute_80", (9, 0), True),
        ("compute_90", (8, 9), False),
        ("compute_90a", (10, 0), False),
        ("compute_100f", (12, 0), False),
        ("gfx942", (9, 4), False),
    ],
)
def test_which_code_runs_on_which_gpu(built: str, capability: tuple[int, int], runs: bool):
    assert runs_on(built, capability) is runs


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"device_file": False}, True),  # torch sees it
        ({"device_file": True, "error": ERROR}, True),
        ({"device_file": False, "error": ERROR}, False),
        ({"device_file": False, "error": ERROR, "visible": "0"}, True),
        ({"device_file": True, "error": ERROR, "visible": ""}, False),
        ({"device_file": True, "error": ERROR, "visible": "-1"}, False),
    ],
)
def test_when_a_gpu_is_expected(changes: dict[str, object], expected: bool):
    assert facts(**changes).is_expected is expected


def use(monkeypatch: pytest.MonkeyPatch, found: GpuFacts) -> None:
    monkeypatch.setattr(gpu_check, "gather", lambda: found)


def test_auto_takes_a_good_gpu(monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, GOOD)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")


def test_cpu_looks_at_no_driver(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_check, "gather", lambda: pytest.fail("looked"))
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("case", WRONG)
def test_cuda_that_cannot_be_used_is_an_error(case: str, monkeypatch: pytest.MonkeyPatch):
    wrong, words = WRONG[case]
    use(monkeypatch, wrong)
    with pytest.raises(StartupError, match=r"^device cuda: .*, or use --device cpu$") as caught:
        choose_device("cuda")
    assert words[0] in str(caught.value)


def test_auto_warns_of_a_broken_gpu_and_not_of_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    use(monkeypatch, NO_DRIVER)
    assert choose_device("auto") == torch.device("cpu")
    assert not caplog.records
    use(monkeypatch, WRONG["old driver"][0])
    assert choose_device("auto") == torch.device("cpu")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "running on the CPU: the NVIDIA driver 470.57.02" in record.getMessage()


def test_facts_of_this_machine():
    found = gather()
    assert found.torch_version == torch.__version__
    assert (found.error == "") == torch.cuda.is_available()
    assert found.openai_triton and (found.driver_cuda is None or found.driver_cuda >= (10, 0))
    assert bool(problem(found)) or found.capability >= gpu_check.LEAST_CAPABILITY


def test_one_thread_computes_with_several_and_the_others_on_their_own():
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as later:
        try:
            one.submit(compute_alone, 3).result()
            assert later.submit(torch.get_num_threads).result() == 1
            assert one.submit(torch.get_num_threads).result() == 3
            assert torch.get_num_threads() == before  # had its own number already
        finally:
            torch.set_num_threads(before)

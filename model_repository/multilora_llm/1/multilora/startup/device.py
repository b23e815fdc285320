"""Which device to use, and what is wrong with a GPU that cannot be used, in one line each.

Laws: facts are gathered when the engine starts, never at import. `problem` judges the facts and
gathers none, so that a test can judge any machine.
"""

import ctypes
import dataclasses
import importlib.util
import logging
import os
import re
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from multilora.errors import StartupError
from multilora.startup.memory_plan import size_text

LEAST_CAPABILITY = (8, 0)  # Ampere: bfloat16 in hardware, asynchronous copies
_DEVICE_FILES = (Path("/dev/nvidiactl"), Path("/dev/nvidia0"), Path("/dev/dxg"))  # dxg: WSL
_DRIVER_LIBRARY = "libcuda.so.1"
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuFacts:
    """Filled by `gather`. CUDA versions are (major, minor).

    `visible` is CUDA_VISIBLE_DEVICES, None when that is not set. `driver` is the driver's own
    version, "" when unknown, and `driver_cuda` the newest CUDA that the driver can run, None
    without a driver. `error` says why torch cannot use a GPU. The fields below `error` are known
    only when it is "".
    """

    device_file: bool
    visible: str | None
    torch_version: str
    torch_cuda: tuple[int, int] | None  # None: a build for CPUs
    driver: str
    driver_cuda: tuple[int, int] | None
    openai_triton: bool
    c_compiler: bool
    error: str = ""
    name: str = ""
    capability: tuple[int, int] = (0, 0)
    architectures: tuple[str, ...] = ()  # that torch was compiled for: sm_90, compute_120
    memory: tuple[int, int] = (0, 0)  # bytes that are free, and all

    @property
    def is_expected(self) -> bool:
        """Whether the machine seems to have a GPU that the user has not hidden."""
        if self.visible is not None:
            return self.visible.strip() not in ("", "-1", "NoDevFiles")
        return self.device_file or not self.error


def choose_device(name: str) -> torch.device:
    """The device for the setting `device`.

    `auto` takes a GPU that can be used, or else the CPU, with a warning when the machine seems to
    have a GPU. StartupError when the setting is `cuda` and the GPU cannot be used.
    """
    if name == "cpu":
        return torch.device("cpu")
    facts = gather()
    wrong = problem(facts)
    if not wrong:
        _LOG.info("%s", describe(facts))
        return torch.device("cuda")
    if name == "cuda":
        raise StartupError(f"device cuda: {wrong}, or use --device cpu")
    if facts.is_expected:
        _LOG.warning("running on the CPU: %s; --device cpu silences this", wrong)
    return torch.device("cpu")


def choose_dtype(name: str, checkpoint: str, device: torch.device) -> torch.dtype:
    """`auto` is the checkpoint's own on a GPU and float32 on a CPU, where half precision saves
    memory but is fast on few machines."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else checkpoint
    return getattr(torch, name)


def num_threads(wanted: int) -> int:
    """0: torch's own number."""
    return wanted or torch.get_num_threads()


def compute_alone(threads: int) -> None:
    """The calling thread computes with so many threads, and others on their own from now on.

    OpenMP keeps a team for each thread that ever asked for one. Its workers wait for work without
    sleeping, but only while all teams together have no more threads than the machine has
    processors. Measured on 2 cores, 49 products of one row with 0.3 ms between them: 24 ms in the
    only thread with a team, 31 ms beside another.
    """
    torch.set_num_threads(threads)  # of all threads that have not asked yet
    torch.get_num_threads()  # this one asks
    others = threading.Thread(target=torch.set_num_threads, args=(1,))
    others.start()
    others.join()


def problem(facts: GpuFacts) -> str:
    """What is wrong and what to do about it, "" when the GPU can be used."""
    if facts.torch_cuda is None:
        return (
            f"torch {facts.torch_version} is a build for CPUs; install a CUDA build of it "
            "(https://pytorch.org/get-started)"
        )
    if facts.error:
        return _unusable(facts, facts.torch_cuda)
    needs = f"compute capability {_dotted(facts.capability)}"
    if facts.capability < LEAST_CAPABILITY:
        least = _dotted(LEAST_CAPABILITY)
        return f"{facts.name} has {needs} and {least} is the least; choose another GPU"
    if not any(runs_on(built, facts.capability) for built in facts.architectures):
        return (
            f"torch {facts.torch_version} has no code for {facts.name} ({needs}), only for "
            f"{', '.join(facts.architectures)}; install a build of torch that has"
        )
    if not facts.openai_triton:
        return "OpenAI Triton, which the kernels are written in, is missing; pip install triton"
    if not facts.c_compiler:
        return "OpenAI Triton finds no C compiler; install gcc or name one in CC"
    return ""


def _unusable(facts: GpuFacts, torch_cuda: tuple[int, int]) -> str:
    """Why torch with CUDA sees no GPU."""
    if facts.driver_cuda is None:
        if facts.device_file or facts.driver:
            return (
                f"there is a GPU but no driver library ({_DRIVER_LIBRARY}); in a container start "
                "it with --gpus all, else install the NVIDIA driver"
            )
        return (
            "there is no NVIDIA driver; install it, and in a container start that with --gpus all"
        )
    if facts.driver_cuda[0] < torch_cuda[0]:  # within a major version older drivers do
        own = f" {facts.driver}" if facts.driver else ""
        return (
            f"the NVIDIA driver{own} is for CUDA {_dotted(facts.driver_cuda)} and torch "
            f"{facts.torch_version} needs CUDA {torch_cuda[0]}; update the driver or install "
            f"torch for CUDA {facts.driver_cuda[0]}"
        )
    if facts.visible is not None:
        return (
            f"no GPU is visible with CUDA_VISIBLE_DEVICES={facts.visible!r} ({facts.error}); "
            "unset it or name one of those that nvidia-smi -L lists"
        )
    return f"torch cannot use the GPU ({facts.error}); see whether nvidia-smi works"


def describe(facts: GpuFacts) -> str:
    """One line for the log about a GPU that can be used."""
    cuda = facts.torch_cuda or (0, 0)
    return (
        f"GPU {facts.name}, compute capability {_dotted(facts.capability)}, driver "
        f"{facts.driver or 'of unknown version'}, torch {facts.torch_version} for CUDA "
        f"{_dotted(cuda)}; {size_text(facts.memory[0])} of {size_text(facts.memory[1])} are free"
    )


def runs_on(built: str, capability: tuple[int, int]) -> bool:
    """Whether code for `built` runs on a GPU of `capability`.

    Machine code (sm) runs on its major version from its minor version on, with suffix `a` on that
    GPU alone; PTX (compute) runs on everything from its version on.
    """
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", built)
    if not match:
        return False
    version = int(match[2]), int(match[3])
    if match[4] == "a":
        return version == capability
    if match[1] == "compute" and not match[4]:
        return version <= capability
    return version[0] == capability[0] and version[1] <= capability[1]


def gather() -> GpuFacts:
    """The facts about driver, torch and GPU of this machine. Starts CUDA when there is a GPU."""
    library = _driver_cuda()
    error = _cuda_error()
    version = torch.version.cuda
    base = GpuFacts(
        device_file=any(path.exists() for path in _DEVICE_FILES),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        torch_version=torch.__version__,
        torch_cuda=_version(version) if version else None,
        driver=_driver_version(),
        driver_cuda=library,
        openai_triton=importlib.util.find_spec("triton") is not None,
        c_compiler=_has_c_compiler(),
        error=error,
    )
    if error:
        return base
    gpu = torch.cuda.get_device_properties(0)
    return dataclasses.replace(
        base,
        name=gpu.name,
        capability=(gpu.major, gpu.minor),
        architectures=tuple(torch.cuda.get_arch_list()),
        memory=torch.cuda.mem_get_info(0),
    )


def _cuda_error() -> str:
    """Why torch cannot start CUDA, "" when it can."""
    try:
        torch.cuda.init()
        if not torch.cuda.device_count():
            return "it sees no GPU"
        torch.cuda.mem_get_info(0)  # starts a context, which fails on a taken or broken GPU
        return ""
    except (RuntimeError, AssertionError) as error:  # AssertionError: a build for CPUs
        return next(iter(str(error).splitlines()), "") or repr(error)


def _driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver can run. The question does not start CUDA."""
    number = ctypes.c_int()
    try:
        failed = ctypes.CDLL(_DRIVER_LIBRARY).cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return None if failed or not number.value else (number.value // 1000, number.value % 1000 // 10)


def _driver_version() -> str:
    try:
        match = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", _DRIVER_FILE.read_text())
    except OSError:
        return ""
    return match[1] if match else ""


def _has_c_compiler() -> bool:
    """Whether OpenAI Triton would find a C compiler, with which it compiles kernel launchers."""
    return bool(os.environ.get("CC")) or any(map(shutil.which, ("gcc", "clang")))


def _version(text: str) -> tuple[int, int]:
    major, minor = (int(part) for part in text.split(".")[:2])
    return major, minor


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"

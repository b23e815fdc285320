"""What the lines of a Triton server's log mean to someone who waits for it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_FAILED_LOAD = re.compile(  # the reason ends before the Python traceback or the closing quote
    r"failed to load '(\w+)' version \d+: (?:Internal|Invalid argument): "
    r'(TritonModelException: )?(.*?)(?:\\n\\nAt:|(?<!\\)"?$)'
)
_LOADING = re.compile(r"loading: (\w+):\d+")
_LOADED = re.compile(r"successfully loaded '(\w+)'")
_ENGINE = re.compile(r"I multilora(?!\.memory:)[\w.]*: (.*)")
_REPORT = re.compile(r"I multilora\.memory: (.*)|W multilora[\w.]*: (.*)")
_NOISE = re.compile(  # of a machine without a GPU, and of streams with triton_grpc_error
    r"pinned|CudaDriverHelper|NVML|DCGM|CUDA driver version is insufficient"
    r"|HandleCancellation called even when the context was not cancelled"
)


def stage(line: str) -> str | None:
    """The stage of starting up that this line announces."""
    if match := _ENGINE.match(line):
        return match[1]
    if match := _LOADING.search(line):
        return f"loading the Triton model {match[1]}"
    if match := _LOADED.search(line):
        return f"loaded the Triton model {match[1]}"
    return None


def report(lines: Iterable[str]) -> list[str]:
    """What the engine said while it started that its user should see: memory and warnings."""
    found = (_REPORT.match(line) for line in lines)
    return [match[1] or f"warning: {match[2]}" for match in found if match]


def is_warning(line: str) -> bool:
    """True for what a user should see when all is quiet: warnings and errors that matter."""
    return bool(re.match(r"[WE]\d{4} |[WEC] multilora", line)) and not _NOISE.search(line)


def lost_lock(lines: Iterable[str]) -> bool:
    """Whether the server died of a race in the Python backend, which one start in dozens loses on a
    busy machine."""
    return any("boost::interprocess::lock_exception" in line for line in lines)


@dataclass(frozen=True)
class Failure:
    """Why the server could not start, in one line."""

    reason: str
    told: bool  # the reason is a Triton model's own, to which the log adds nothing


def failure(lines: Iterable[str]) -> Failure | None:
    """Why the server could not start, if the log says so."""
    found = None
    for line in lines:
        if match := _FAILED_LOAD.search(line):
            return Failure(match[3].replace(r"\"", '"'), told=match[2] is not None)
        if line.startswith("error: "):
            found = Failure(line.removeprefix("error: "), told=False)
    return found

"""A Triton server that can be started here: its binary, its Python backend, its environment.

find_install looks on PATH, in /opt/tritonserver (NVIDIA's container) and in the package
nvidia-pytriton, which carries the server and the parts of its Python backend for several Pythons;
the parts are linked together in a cache folder. The backend finds the running Python's packages
through `python3` on PATH and ignores PYTHONPATH, so the folder of the running interpreter comes
first on PATH.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.process import LaunchError
from launcher.repository import REPOSITORY

CACHE = REPOSITORY / ".cache" / "tritonserver"
CONTAINER = Path("/opt/tritonserver")
PYTRITON = "nvidia-pytriton==0.7.0"
OLDEST = (2, 51)  # the first with histograms for Python models
_NEEDED = (
    *("torch", "tokenizers", "safetensors", "jinja2", "huggingface_hub", "fsspec"),
    "multilora_kernels",
)


@dataclass(frozen=True)
class TritonInstall:
    """Where a Triton server is, and which variables it needs besides those of this process."""

    binary: Path
    backends: Path
    environment: dict[str, str]


def find_install() -> TritonInstall:
    """The first Triton server found; raises LaunchError."""
    _check_packages()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    on_path = shutil.which("tritonserver")
    binary = Path(on_path).resolve() if on_path else CONTAINER / "bin" / "tritonserver"
    if binary.is_file():
        _check_version(os.environ.get("TRITON_SERVER_VERSION", ""))  # NVIDIA's images set it
        return TritonInstall(binary, binary.parent.parent / "backends", {"PATH": path})
    site = _pytriton_site()
    if site is None:
        raise LaunchError(
            "no tritonserver found on PATH, in /opt/tritonserver or in this Python's packages; "
            f"run: pip install --no-deps {PYTRITON}"
        )
    _check_numpy()
    libraries = [site / "nvidia_pytriton.libs", _libpython_folder()]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    search = [*map(str, libraries), *([inherited] if inherited else [])]
    server = site / "pytriton" / "tritonserver"
    return TritonInstall(
        server / "bin" / "tritonserver",
        _link_backend(server),
        {"PATH": path, "LD_LIBRARY_PATH": os.pathsep.join(search)},
    )


def _pytriton_site() -> Path | None:
    """The site-packages folder that holds nvidia-pytriton."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        return None
    site = Path(spec.origin).parent.parent
    return site if (site / "pytriton" / "tritonserver" / "bin" / "tritonserver").is_file() else None


def _check_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise LaunchError(
            f"{sys.executable} lacks {', '.join(missing)}; run: pip install -e '.[server]' "
            f"in {REPOSITORY}"
        )


def _check_version(version: str) -> None:
    """A version that is not known ("") passes."""
    if version and tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise LaunchError(
            f"the Triton server here is {version} but at least {OLDEST[0]}.{OLDEST[1]} is needed; "
            "use NVIDIA's container 24.10 or newer"
        )


def _check_numpy() -> None:
    version = importlib.metadata.version("numpy")
    if int(version.split(".")[0]) >= 2:
        raise LaunchError(
            f"numpy {version} is installed but the Python backend in {PYTRITON} was built for "
            "numpy 1 and crashes with it; run: pip install 'numpy<2'"
        )


def _libpython_folder() -> Path:
    """The folder of the running Python's shared library, which the backend's stub links to."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    library = Path(sysconfig.get_config_var("LIBDIR") or "")
    multiarch = library / (sysconfig.get_config_var("MULTIARCH") or "")
    for folder in (library, multiarch, Path(sys.base_prefix) / "lib"):
        if (folder / name).is_file():
            return folder
    raise LaunchError(
        f"{name} was not found near {sys.base_prefix}; use a Python built with --enable-shared"
    )


def _link_backend(server: Path) -> Path:
    """The folder of backends/python, in which the stub is that of the running Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        have = ", ".join(sorted(path.name for path in stub.parent.parent.iterdir()))
        raise LaunchError(f"{PYTRITON} has no stub for Python {version}; it has {have}")
    source = server / "backends" / "python"
    backends = CACHE / f"backends-{version}"
    folder = backends / "python"
    parts = (source / "libtriton_python.so", source / "triton_python_backend_utils.py", stub)
    with written_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for part in parts:
            _link(folder / part.name, part)
    return backends


def _link(link: Path, target: Path) -> None:
    """Point `link` at `target`, in one step so that servers starting together do not collide."""
    if link.is_symlink() and link.readlink() == target:
        return
    temporary = link.with_name(f"{link.name}.{os.getpid()}")
    temporary.symlink_to(target)
    temporary.replace(link)


@contextlib.contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Turn an OSError within into a LaunchError about `folder`."""
    try:
        yield
    except OSError as error:
        raise LaunchError(
            f"{folder} cannot be written ({error.strerror}); free some of its disk, or let user "
            f"{os.getuid()} write to it"
        ) from None

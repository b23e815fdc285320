"""Finding a Triton server and putting its Python backend together."""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import pytest

from launcher.process import LaunchError
from launcher.triton import install as triton_install
from launcher.triton.install import find_install


@pytest.fixture
def pytriton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site-packages folder with nvidia-pytriton's layout, beside no other server; numpy 1."""
    server = tmp_path / "site/pytriton/tritonserver"
    stub = server / "python_backend_stubs" / ".".join(map(str, sys.version_info[:2]))
    for path in (
        server / "bin/tritonserver",
        server / "backends/python/libtriton_python.so",
        server / "backends/python/triton_python_backend_utils.py",
        stub / "triton_python_backend_stub",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(triton_install, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(triton_install, "CONTAINER", tmp_path / "none")
    monkeypatch.setattr(triton_install, "_pytriton_site", lambda: tmp_path / "site")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.26.4")
    monkeypatch.setenv("PATH", "/usr/bin")
    return server


@pytest.mark.usefixtures("pytriton")
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(
        LaunchError, match=r"cache/backends-.* cannot be written \(Not a directory\)"
    ):
        find_install()


def test_the_parts_are_linked_for_this_python(pytriton: Path) -> None:
    install = find_install()
    parts = {path.name: path.resolve() for path in (install.backends / "python").iterdir()}
    assert set(parts) == {
        "libtriton_python.so",
        "triton_python_backend_utils.py",
        "triton_python_backend_stub",
    }
    assert all(path.is_relative_to(pytriton) for path in parts.values())
    assert find_install() == install  # a second start finds everything in place
    assert install.binary == pytriton / "bin/tritonserver"
    assert install.environment["PATH"].startswith(str(Path(sys.executable).parent))
    assert "nvidia_pytriton.libs" in install.environment["LD_LIBRARY_PATH"]


def test_a_link_to_another_place_is_replaced(pytriton: Path, tmp_path: Path) -> None:
    library = find_install().backends / "python/libtriton_python.so"
    library.unlink()
    library.symlink_to(tmp_path / "gone")
    find_install()
    assert library.resolve().is_relative_to(pytriton)


def test_a_server_on_the_path_comes_first(
    pytriton: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "opt/bin/tritonserver"
    binary.parent.mkdir(parents=True)
    binary.touch(0o755)
    monkeypatch.setenv("PATH", str(binary.parent))
    install = find_install()
    assert (install.binary, install.backends) == (binary, tmp_path / "opt/backends")
    monkeypatch.setenv("TRITON_SERVER_VERSION", "2.40.0")
    with pytest.raises(LaunchError, match=r"is 2\.40\.0 but at least 2\.51 is needed"):
        find_install()


def test_what_is_wrong_is_told(pytriton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.3.5")
    with pytest.raises(LaunchError, match=r"numpy 2\.3\.5 .* pip install 'numpy<2'"):
        find_install()
    monkeypatch.setattr(triton_install, "_pytriton_site", lambda: None)
    with pytest.raises(LaunchError, match=r"no tritonserver found .* pip install"):
        find_install()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LaunchError, match=r"lacks torch, .*multilora_kernels"):
        find_install()


def test_no_stub_for_this_python(pytriton: Path) -> None:
    folder = pytriton / "python_backend_stubs"
    next(folder.iterdir()).rename(folder / "3.6")
    with pytest.raises(LaunchError, match=r"no stub for Python .* it has 3\.6"):
        find_install()

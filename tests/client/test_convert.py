"""`multilora adapters convert`: pickled weights become safetensors, and nothing in them is run."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from multilora_client.cli import main
from support.tiny.adapters import make_adapter

Convert = Callable[[Path], tuple[int, str, str]]

CLIENT = Path(__file__).parents[2] / "client"
PICKLE, SAFE = "adapter_model.bin", "adapter_model.safetensors"


@pytest.fixture(name="convert")
def command(capsys: pytest.CaptureFixture[str]) -> Convert:
    """`multilora adapters convert FOLDER` → exit code, stdout, stderr."""

    def run(folder: Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["adapters", "convert", str(folder)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def refused(convert: Convert, folder: Path) -> str:
    """The one line that is said; nothing is written."""
    before = sorted(path.name for path in folder.iterdir())
    code, said, error = convert(folder)
    assert (code, said, error.count("\n")) == (1, "", 1), error
    assert sorted(path.name for path in folder.iterdir()) == before
    return error


def test_a_pickle_of_peft_becomes_the_same_tensors(convert: Convert, tmp_path: Path) -> None:
    model = make_adapter(tmp_path / "whole")
    model.save_pretrained(str(tmp_path / "old"), safe_serialization=False)
    folder = tmp_path / "old"
    assert not (folder / SAFE).exists() and (folder / PICKLE).is_file()
    content = (folder / PICKLE).read_bytes()
    (folder / PICKLE).chmod(0o640)
    assert convert(folder) == (0, f"{folder / SAFE}: written\n", "")
    found = load_file(folder / SAFE)
    expected = get_peft_model_state_dict(model)
    assert found.keys() == expected.keys() == load_file(tmp_path / "whole" / SAFE).keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (folder / PICKLE).read_bytes() == content
    assert stat.S_IMODE((folder / SAFE).stat().st_mode) == 0o640
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []
    assert "is there already" in refused(convert, folder)


class Command:
    """What an attacker puts into a pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(convert: Convert, tmp_path: Path, zipped: bool) -> None:
    ran = tmp_path / "ran"
    tensors = {"base_model.model.x.lora_A.weight": torch.ones(2, 2), "y": Command(ran)}
    (tmp_path / "x").mkdir()
    torch.save(tensors, tmp_path / "x" / PICKLE, _use_new_zipfile_serialization=zipped)
    message = refused(convert, tmp_path / "x")
    assert "could run code; nothing of it was run" in message and "weights_only" not in message
    assert not ran.exists()
    torch.load(tmp_path / "x" / PICKLE, weights_only=False)
    assert ran.exists()  # it would have


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], "holds no tensors by name"),
        ({"a": torch.ones(2), "step": 3}, "holds no tensors by name"),
        ({"a": torch.ones(2).to_sparse()}, "cannot be written"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is damaged, or holds more"),
        (None, "has no adapter_model.bin"),
        (Path("/proc/self/mem"), "cannot be read (Input/output error)"),
    ],
    ids=str,
)
def test_what_is_no_adapter(convert: Convert, tmp_path: Path, content: Any, words: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / PICKLE).write_bytes(content)
    elif isinstance(content, Path):
        (tmp_path / PICKLE).symlink_to(content)
    elif content is not None:
        torch.save(content, tmp_path / PICKLE)
    assert words in refused(convert, tmp_path)


def test_tensors_that_share_memory(convert: Convert, tmp_path: Path) -> None:
    table = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": table, "b": table, "c": table.T, "d": table[1:]}, tmp_path / PICKLE)
    assert convert(tmp_path)[0] == 0
    found = load_file(tmp_path / SAFE)
    assert torch.equal(found["b"], table) and torch.equal(found["c"], table.T)
    assert torch.equal(found["d"], table[1:])


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("raise ModuleNotFoundError('none', name='torch')", "pip install torch safetensors"),
        ("__version__ = '2.5.1+cpu'", "pip install 'torch>=2.6'"),
    ],
)
def test_without_a_torch_that_is_safe(tmp_path: Path, module: str, words: str) -> None:
    """In a process that has another torch than this one, or none."""
    (tmp_path / "x").mkdir()
    torch.save({"a": torch.ones(2)}, tmp_path / "x" / PICKLE)
    (tmp_path / "torch.py").write_text(module)
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors/__init__.py").write_text("")
    (tmp_path / "safetensors/torch.py").write_text("save_file = None")
    done = subprocess.run(
        [sys.executable, "-m", "multilora_client.cli", "adapters", "convert", tmp_path / "x"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{CLIENT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and words in done.stderr, done.stderr

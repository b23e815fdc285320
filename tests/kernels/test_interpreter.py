"""Runs the GPU kernel tests without a GPU, in OpenAI Triton's interpreter.

In processes of their own: TRITON_INTERPRET is read when the kernels are imported. Three of them, as
each takes seconds to start.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LONG = [[HERE / f"test_{name}_gpu.py"] for name in ("attention", "draw")]
GROUPS = [*LONG, sorted(file for file in HERE.glob("test_*_gpu.py") if [file] not in LONG)]


@pytest.mark.parametrize("files", GROUPS, ids=["attention", "draw", "others"])
def test_gpu_kernels_in_the_interpreter(files: list[Path]):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rp", "-p", "no:cacheprovider", *map(str, files)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, cwd=HERE.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for file in files:
        passed = done.stdout.count(f"PASSED {file.relative_to(HERE.parent.parent)}::")
        assert passed >= 2, f"{file.name}: {done.stdout[-500:]}"

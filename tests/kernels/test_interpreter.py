"""Runs the GPU kernel tests without a GPU, in OpenAI Triton's interpreter.

In a process of its own: TRITON_INTERPRET is read when the kernels are imported.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("test_*_gpu.py"))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_gpu_kernels_in_the_interpreter(file: Path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, cwd=HERE.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout[-500:]
    assert int(passed[1]) >= 2, done.stdout[-500:]

"""Runs the GPU kernel tests without a GPU, in OpenAI Triton's interpreter.

In a process of its own: TRITON_INTERPRET is read when the kernels are imported.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_gpu_kernels_in_the_interpreter():
    files = [str(HERE / "test_lora_gpu.py"), str(HERE / "test_attention_gpu.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, cwd=HERE.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = int(done.stdout.rsplit(" passed", 1)[0].rsplit(maxsplit=1)[-1].lstrip("="))
    assert passed >= 30, done.stdout[-500:]

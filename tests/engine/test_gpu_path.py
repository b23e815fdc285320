"""The engine's GPU path without a GPU: whole forward passes in OpenAI Triton's interpreter.

Against transformers and PEFT, and replayed passes against eager ones. In processes of their own:
TRITON_INTERPRET is read when the kernels are imported. The interpreter is slow and computes
bfloat16 wrongly, so of the tests of the CPU path it runs one of each kind, in float32.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SELECTED = [
    ("forward/test_graphs_gpu.py", "not prompts and not trace"),
    ("forward/test_graphs_gpu.py", "prompts or trace"),
    (
        "forward/test_decoder.py",
        "transformers and (qwen3-biases or mistral-window or llama-yarn-mscale) "
        "and not (replayed and qwen3)",
    ),
    ("adapters/test_vs_peft.py", "every_row and (ranks or (qwen3 and not moe) or tied)"),
]


@pytest.mark.parametrize(("name", "expression"), SELECTED)
def test_in_the_interpreter(name: str, expression: str):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore",
         str(HERE / name), "-k", expression],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, cwd=HERE.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = int(done.stdout.rsplit(" passed", 1)[0].rsplit(maxsplit=1)[-1].lstrip("="))
    assert passed >= 2, done.stdout[-500:]

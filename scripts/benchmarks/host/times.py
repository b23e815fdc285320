"""How long passes take on a GPU."""

import numpy as np

# Milliseconds of a decode pass of so many rows without adapters, and prompt tokens a second, as
# docs/benchmarks/gpu-h100-80gb-hbm3.json has them: Llama-3-8B in bfloat16, contexts of 512.
ROWS = (1, 8, 32, 64, 128, 256)
MILLISECONDS = (6.64, 7.07, 7.93, 9.17, 11.12, 16.37)
_PROMPT_TOKENS = 44_000


def pass_seconds(rows: int, prompt_tokens: int = 0) -> float:
    """Of `rows` decode rows and so many tokens of prompts."""
    return float(np.interp(rows, ROWS, MILLISECONDS)) / 1e3 + prompt_tokens / _PROMPT_TOKENS

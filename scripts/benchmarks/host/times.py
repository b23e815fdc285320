"""How long passes take on a GPU."""

import numpy as np

# Milliseconds of a decode pass of so many rows: 8B weights in bfloat16 on an H100, contexts of 512.
ROWS = (1, 8, 32, 64, 128, 256)
MILLISECONDS = (6.3, 6.9, 8.0, 9.2, 11.0, 16.0)
_PROMPT_TOKENS = 44_000  # a second


def pass_seconds(rows: int, prompt_tokens: int = 0) -> float:
    """Of `rows` decode rows and so many tokens of prompts."""
    return float(np.interp(rows, ROWS, MILLISECONDS)) / 1e3 + prompt_tokens / _PROMPT_TOKENS

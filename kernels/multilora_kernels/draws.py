"""Draws: how to draw tokens for some of the rows of a batch."""

from typing import NamedTuple

import torch


class Draws(NamedTuple):
    """For D rows with a temperature; `keys` stand for the noise of (seed, position)."""

    rows: torch.Tensor  # int64 [D], rows of the logits, ascending
    temperature: torch.Tensor  # float32 [D, 1], positive
    min_p: torch.Tensor  # float32 [D, 1], 0 = off
    top_p: torch.Tensor  # float32 [D, 1], 1 = off
    top_k: torch.Tensor  # int64 [D, 1], 0 = off
    keys: torch.Tensor  # int32 [D, 2]
    candidates: int  # how many of the largest logits top_k and top_p look at first, on a CPU
    has_top_p: bool

"""The first pass: a few rows, computed once at start, before anything is measured or captured.

What neither config.json nor the shapes of the weights show of a base model ends the start here, and
not a request: weights that are no numbers, or a class that does something else with numbers than
its trace, which has none, let see.
"""

import math
from array import array
from pathlib import Path

import torch

from multilora.errors import StartupError, first_line
from multilora.forward.base_model import BaseModel, KVCache, too_large
from multilora.forward.step_input import build_step_input
from multilora.request import Request
from multilora.scheduling.batch import BatchItem, make_batch
from multilora.scheduling.sequence import Sequence

_ROWS, _BLOCK = 3, 16


def check_first_pass(
    model: BaseModel, folder: Path, dtype: torch.dtype, device: torch.device
) -> None:
    """StartupError where the model that was loaded from `folder` cannot be computed in `dtype` on
    `device`. Keeps no memory of either."""
    name = model.base.architecture
    try:
        logits = _logits(model, dtype, device)
        shape, finite = logits.shape, bool((logits < math.inf).all())  # -inf: never that token
    except (torch.OutOfMemoryError, MemoryError):
        raise too_large(folder, dtype, device) from None
    except Exception as error:
        if "can't allocate memory" in str(error):  # a CPU's, which has no class of its own
            raise too_large(folder, dtype, device) from None
        what = f"{name} cannot be computed ({first_line(error)})"
        raise StartupError(f"{folder}: {what}; serve another base model") from None
    if shape != (1, model.base.vocab_size):
        what = f"{name} has logits of other tokens than those of vocab_size"
        raise StartupError(f"{folder}: {what}; serve another base model")
    if not finite:
        wider = " or start with --dtype bfloat16" if dtype == torch.float16 else ""
        raise StartupError(
            f"{folder}: what {name} computes as {dtype} is not finite; download the checkpoint "
            f"again{wider}"
        )
    if device.type == "cuda":  # the memory probe has to see what cuBLAS takes for a thread
        torch._C._cuda_clearCublasWorkspaces()


def _logits(model: BaseModel, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """After the first tokens of a sequence in KV block 0."""
    base = model.base
    count = min(_ROWS, base.vocab_size, base.max_position_embeddings)
    sequence = Sequence(Request("", tuple(range(count))))
    sequence.block_table = array("i", [0])
    batch = make_batch([BatchItem.next(sequence, count)], {})
    kv = KVCache(base, 1, _BLOCK, dtype, device)
    return model.forward(build_step_input(batch, _BLOCK, device, dtype), kv, None)

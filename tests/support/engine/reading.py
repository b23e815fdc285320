"""An adapter read for itself, and its pages in a pool of its own."""

from collections.abc import Sequence
from pathlib import Path

import torch

from multilora.adapters.checkpoint.adapter import Adapter, AdapterReader
from multilora.base_model.sites import LoRASite
from multilora.lora.rank_pages import RankPagePool
from multilora_text.tokenizer import Tokenizer


def read_adapter(
    folder: Path,
    adapter_id: str,
    sites: Sequence[LoRASite],
    dtype: torch.dtype,
    max_rank: int,
    tokenizer: Tokenizer | None = None,
    base_folder: Path | None = None,
) -> Adapter:
    reader = AdapterReader(sites, dtype, max_rank, tokenizer, base_folder)
    return reader.read(folder, adapter_id)


def pages_of(adapter: Adapter, sites: Sequence[LoRASite], dtype: torch.dtype) -> RankPagePool:
    """A pool on the CPU that holds the adapter and nothing else."""
    pool = RankPagePool(sites, adapter.num_pages, dtype, "cpu")
    pool.write(range(adapter.num_pages), adapter.weights)
    return pool

"""What adapters take on the device: the pool's memory beside the bytes of the adapters alone.

The base model is there once, however many adapters there are.
"""

import gc

import torch

from benchmarks.gpu.model import one_page, random_weights, weights_bytes
from benchmarks.gpu.setting import Record, Row, Setting
from benchmarks.gpu.shapes import adapter_elements
from multilora.lora.rank_pages import RankPagePool

_RANK = 16
_COUNTS = (10, 30)


def measure(setting: Setting, record: Record) -> None:
    record.cell("memory", lambda: _cells(setting))


def _cells(setting: Setting) -> list[Row]:
    base, dtype, device = setting.base, setting.dtype, setting.device
    before = used_bytes(device)
    weights = random_weights(base, dtype, device)
    with_base = used_bytes(device)
    own = adapter_elements(base, _RANK) * base.num_layers * dtype.itemsize
    rows: list[Row] = []
    for count in _COUNTS:
        start, lent = used_bytes(device), lent_bytes(device)
        pages = RankPagePool(base.sites, count, dtype, device)
        adapter = one_page(base, dtype)
        for page in range(count):
            pages.write([page], adapter)
        setting.synchronize()
        del adapter
        pool_bytes, start_base = used_bytes(device) - start, start - with_base
        rows.append(
            {
                "adapters": count,
                "rank": _RANK,
                "bytes": pool_bytes,
                "device_bytes": lent_bytes(device) - lent,
                "true_bytes": own * count,
                "base_bytes": with_base - before,
                "base_true_bytes": weights_bytes(weights),
                "base_bytes_more": start_base,
            }
        )
        del pages
    return rows


def used_bytes(device: torch.device) -> int:
    """What the tensors of the process take there, by PyTorch's count; on a CPU by ours."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    storages = {own.data_ptr(): own.nbytes() for own in (t.untyped_storage() for t in tensors)}
    return sum(storages.values())


def lent_bytes(device: torch.device) -> int:
    """What the driver has given away; other processes' included."""
    if device.type != "cuda":
        return used_bytes(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return total - free

"""K and V of new tokens as the classes of transformers have them, written into a cache."""

from collections.abc import Callable

import torch


def check_kv_write(
    write: Callable[..., None], dtype: torch.dtype, device: str, head_dim: int, value_dim: int
) -> None:
    """Rows in any order, some of them padding; of K heads before rows in memory, of V rows before
    heads."""
    noise = torch.Generator().manual_seed(0)
    for rows, heads in ((0, 1), (1, 1), (37, 3)):
        slots = torch.randperm(64, generator=noise)[:rows]
        slots[rows // 2 + 1 :: 5] = -1
        k = torch.randn(heads, rows, head_dim, generator=noise).to(device, dtype).transpose(0, 1)
        v = torch.randn(rows, heads, value_dim, generator=noise).to(device, dtype)
        caches = [
            torch.full((8, 8, heads, size), float("nan"), dtype=dtype, device=device)
            for size in (head_dim, value_dim)
        ]
        write(k, v, *caches, slots.to(device))
        real = slots >= 0
        others = torch.ones(64, dtype=torch.bool)
        others[slots[real]] = False
        for cache, given in zip(caches, (k, v), strict=True):
            flat = cache.flatten(0, 1).cpu()
            assert torch.equal(flat[slots[real]], given.cpu()[real])
            assert flat[others].isnan().all()

"""Batches of some adapters whose rows go to some experts, at random."""

import random

import torch

from multilora_kernels.segments import LaunchBounds, LoRASegments

PAGES, MOST_PAGES = 40, 3  # of the pool, of an adapter


def expert_case(seed: int, device: str = "cpu") -> tuple[torch.Tensor, int, LoRASegments]:
    """Experts of each row [T, k], how many there are, and segments of the rows; some with bounds
    as a captured pass has them."""
    noise = random.Random(seed)
    rows, experts = noise.choice([1, 3, 20, 100]), noise.choice([1, 4, 8])
    chosen = min(experts, noise.choice([1, 2]))
    free = random.Random(seed).sample(range(PAGES), PAGES)
    counts: list[int] = []
    pages: list[list[int]] = []
    while sum(counts) < rows and len(counts) < 8 and noise.random() < 0.8:
        counts.append(min(noise.choice([0, 1, 2, 17, 40]), rows - sum(counts)))
        pages.append([free.pop() for _ in range(noise.choice([0, 1, MOST_PAGES]))])
    starts = [sum(counts[:i]) for i in range(len(counts))]
    bounds = None
    if noise.random() < 0.5:
        bounds = LaunchBounds.for_pass(rows, max(len(counts), 1), MOST_PAGES, PAGES)
    index = torch.tensor([noise.sample(range(experts), chosen) for _ in range(rows)])
    segments = LoRASegments.from_lists(starts, counts, pages, rows, device, bounds=bounds)
    return index.to(device), experts, segments

"""Pairs of a row and an expert, and which pages are theirs."""

import pytest
import torch

from multilora_kernels.expert_rows import expert_rows, expert_rows_reference
from support.kernels.expert_rows import expert_case


@pytest.mark.parametrize("seed", range(60))
def test_each_pair_has_the_pages_of_its_row_and_expert(seed: int) -> None:
    index, experts, segments = expert_case(seed)
    made = expert_rows(index, experts, segments)
    entries: list[tuple[int, ...]] = [()] * index.numel()
    for start, count, pages in made.segments.segments:
        entries[start : start + count] = [pages] * count
    found = zip(made.rows.tolist(), made.experts.tolist(), entries, strict=True)
    assert sorted(found) == expert_rows_reference(index, experts, segments)
    assert torch.equal(index.flatten()[made.pairs], made.experts)
    assert made.experts.tolist() == sorted(made.experts.tolist())
    assert made.ends.tolist() == [int((made.experts <= e).sum()) for e in range(experts)]


def test_an_adapter_is_one_run_of_an_expert() -> None:
    """Whatever the number of its rows: so the products are few."""
    for seed in range(60):
        index, experts, segments = expert_case(seed)
        made = expert_rows(index, experts, segments).segments.segments
        runs = [run.pages for run in made if run.pages]
        assert len(runs) == len(set(runs))

"""The tables of expert rows as the device makes them, and the update that the kernels add by them.

On a GPU, or interpreted (see test_interpreter).
"""

import pytest
import torch

from multilora_kernels.expert_rows import ExpertRows, expert_rows, expert_rows_reference
from multilora_kernels.lora import add_lora
from multilora_kernels.segments import DECODE_TILE, PAGE_RANK
from support.kernels.cases import DEVICE, INTERPRETED, needs_gpu
from support.kernels.expert_rows import PAGES, expert_case

pytestmark = needs_gpu
DTYPE = torch.float32 if INTERPRETED else torch.float16


def entries_of_pairs(made: ExpertRows) -> list[tuple[int, ...]]:
    """As the tables have them."""
    tables = made.segments
    num_pairs, num_tiles, _, _ = tables.counts.tolist()
    found: list[tuple[int, ...]] = [()] * len(made.pairs)
    for start, count, first, end in tables.tiles[:num_tiles].tolist():
        assert 0 < count <= DECODE_TILE and end > first
        own = tables.pairs[first:end].tolist()
        assert all(pair[:2] == [start, count] and pair[3] == 0 for pair in own)
        for row in range(start, start + count):
            assert not found[row], "in two tiles"
            found[row] = tuple(pair[2] for pair in own)
    assert not tables.tiles[num_tiles:, 1].any() and not tables.pairs[num_pairs:].any()
    return found


@pytest.mark.parametrize("seed", range(60))
def test_the_tables_that_the_device_makes(seed: int) -> None:
    index, experts, segments = expert_case(seed, DEVICE)
    made = expert_rows(index, experts, segments)
    found = zip(made.rows.tolist(), made.experts.tolist(), entries_of_pairs(made), strict=True)
    expected = expert_rows_reference(index, experts, segments)
    assert sorted(found) == expected
    assert made.ends.tolist() == [int((made.experts <= e).sum()) for e in range(experts)]


@pytest.mark.parametrize("seed", [0, 9, 16])
def test_the_update_of_each_pair(seed: int) -> None:
    index, experts, segments = expert_case(seed, DEVICE)
    made = expert_rows(index, experts, segments)
    noise = torch.Generator().manual_seed(seed)
    entries = PAGES * experts

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=noise) / 8).to(DEVICE, DTYPE)

    a, b = random(entries, 1, PAGE_RANK, 32), random(entries, PAGE_RANK, 48)
    x, y = random(len(made.pairs), 32), random(len(made.pairs), 48)
    expected = y.double()
    for row, own in enumerate(entries_of_pairs(made)):
        for entry in own:
            expected[row] += x[row].double() @ a[entry, 0].double().T @ b[entry].double()
    assert any(entries_of_pairs(made)), "a case with adapters"
    add_lora(y, x, a, b, (48,), made.segments)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=4e-3)


@pytest.mark.skipif(INTERPRETED, reason="captures a CUDA graph")
def test_a_captured_graph_makes_the_tables_of_each_routing() -> None:
    index, experts, segments = expert_case(0, DEVICE)
    expert_rows(index, experts, segments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = expert_rows(index, experts, segments)
    for seed in range(5):
        noise = torch.Generator().manual_seed(seed)
        other = torch.rand(len(index), experts, generator=noise).argsort(dim=1)
        index.copy_(other[:, : index.shape[1]])
        graph.replay()
        found = zip(made.rows.tolist(), made.experts.tolist(), entries_of_pairs(made), strict=True)
        assert sorted(found) == expert_rows_reference(index, experts, segments)

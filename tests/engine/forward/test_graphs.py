"""Which decode passes are captured."""

import pytest

from multilora.forward.graphs import graph_sizes


@pytest.mark.parametrize("rows", [1, 3, 8, 12, 64, 100, 256, 300, 512])
def test_every_batch_has_a_graph_that_is_not_much_too_large(rows: int) -> None:
    sizes = graph_sizes(rows)
    assert sizes == tuple(sorted(set(sizes)))
    assert sizes[-1] == rows
    for batch in range(1, rows + 1):
        size = next(size for size in sizes if size >= batch)
        assert size - batch <= max(7, batch / 4)

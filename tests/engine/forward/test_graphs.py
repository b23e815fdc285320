"""Which passes are captured."""

import pytest

from multilora.forward.graphs import Bucket, GraphLimits, buckets


@pytest.mark.parametrize("rows", [1, 3, 8, 12, 64, 100, 256, 300, 512])
def test_every_batch_has_a_graph_that_is_not_much_too_large(rows: int) -> None:
    found = buckets(GraphLimits(rows, 4096, 1))
    assert found == tuple(sorted(set(found))) and not any(bucket.mixed for bucket in found)
    sizes = [bucket.rows for bucket in found]
    assert sizes[-1] == rows
    for batch in range(1, rows + 1):
        size = next(size for size in sizes if size >= batch)
        assert size - batch <= max(7, batch / 4)


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (0, []),
        (1, [16]),
        (16, [16]),
        (52, [16, 32, 64]),
        (512, [16, 32, 64, 96, 128, 192, 256, 384, 512]),
    ],
)
def test_mixed_passes_up_to_the_largest_that_can_be(most: int, sizes: list[int]) -> None:
    found = buckets(GraphLimits(3, 4096, 1, mixed_rows=most))
    assert [bucket.rows for bucket in found if bucket.mixed] == sizes
    assert [bucket for bucket in found if not bucket.mixed] == [Bucket(1), Bucket(2), Bucket(3)]
    assert list(found) == sorted(found)

"""The list of query tiles that prefill attention walks over."""

import random

import numpy as np
import pytest

from multilora_kernels.paged_prefill import most_query_tiles, query_tiles

Lengths = list[tuple[int, int]]


def random_lengths(noise: random.Random, rows: int, sequences: int) -> Lengths:
    """(new, context) of sequences that take up to `rows` rows."""
    lengths: Lengths = []
    for _ in range(noise.randint(1, sequences)):
        new = min(rows, noise.choice([1, 2, noise.randint(1, max(1, rows))]))
        if new:
            lengths.append((new, new + noise.choice([0, noise.randint(0, 100)])))
        rows -= new
    return lengths


def table(lengths: Lengths, queries: int) -> np.ndarray:
    new, contexts = np.array(lengths).T
    return query_tiles(new, contexts, queries)


@pytest.mark.parametrize("queries", [1, 16, 32])
@pytest.mark.parametrize("seed", range(30))
def test_tiles_cover_what_has_several_new_tokens(seed: int, queries: int):
    lengths = random_lengths(random.Random(seed), 200, 12)
    row, wanted, found = 0, set[tuple[int, int, int]](), list[tuple[int, int, int]]()
    for sequence, (new, context) in enumerate(lengths):
        if new > 1:
            wanted |= {(row + i, context - new + i, sequence) for i in range(new)}
        row += new
    tiles = table(lengths, queries)
    for first, count, position, sequence in tiles.tolist():
        assert 1 <= count <= queries
        found += [(first + i, position + i, sequence) for i in range(count)]
    assert len(found) == len(wanted) and set(found) == wanted
    ends = (tiles[:, 1] + tiles[:, 2]).tolist()
    assert ends == sorted(ends, reverse=True), "long tiles start first"
    assert tiles.dtype == np.int32 and tiles.shape == (len(ends), 4)


@pytest.mark.parametrize(("rows", "sequences", "queries"), [(512, 64, 16), (33, 5, 4), (16, 16, 7)])
def test_no_batch_has_more_tiles_than_its_bound(rows: int, sequences: int, queries: int):
    most = most_query_tiles(rows, sequences, queries)
    for seed in range(300):
        assert len(table(random_lengths(random.Random(seed), rows, sequences), queries)) <= most
    assert len(table([(rows, rows)], queries)) == most_query_tiles(rows, 1, queries)
    assert len(table([(2, 9)] * (rows // 2), rows)) == most_query_tiles(rows, rows, rows)

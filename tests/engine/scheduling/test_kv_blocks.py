"""BlockAllocator: nothing leaks, nothing is shared across adapters or contents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multilora.request import AdapterSet, AdapterWeight
from multilora.scheduling.kv_blocks import BlockAllocator, prefix_digests
from support.laws import LAW

SIZE = 8
of = AdapterSet.of


def test_a_published_prefix_is_found_by_the_same_adapter_only():
    blocks = BlockAllocator(8, SIZE)
    tokens = list(range(3 * SIZE + 2))
    digests = list(prefix_digests(of("sql@1"), tokens, SIZE))
    assert len(digests) == 3
    held = blocks.allocate(4)
    assert held is not None
    for block, digest in zip(held, digests, strict=False):
        blocks.publish(block, digest)
    blocks.free(held)
    assert blocks.num_free == 8
    assert blocks.take_prefix(prefix_digests(of("sql@2"), tokens, SIZE)) == []
    assert blocks.take_prefix(prefix_digests(of(""), tokens, SIZE)) == []
    half = AdapterSet((AdapterWeight("sql@1", 0.5),))
    both = AdapterSet((AdapterWeight("sql@1"), AdapterWeight("chat@1")))
    for others in (half, both):
        assert blocks.take_prefix(prefix_digests(others, tokens, SIZE)) == []
    other = [*tokens[:SIZE], 99, *tokens[SIZE + 1 :]]
    assert blocks.take_prefix(prefix_digests(of("sql@1"), other, SIZE)) == held[:1]
    assert blocks.take_prefix(digests) == held[:3]
    assert blocks.num_free == 5


@LAW
@given(st.lists(st.integers(0, 3), min_size=2 * SIZE, max_size=6 * SIZE), st.integers(0, 6))
def test_a_chain_of_digests_can_be_continued(tokens: list[int], after: int):
    whole = list(prefix_digests(of("a"), tokens, SIZE))
    after = min(after, len(whole))
    start = whole[after - 1] if after else None
    assert list(prefix_digests(of("a"), tokens[after * SIZE :], SIZE, start)) == whole[after:]


def test_a_block_handed_out_again_is_forgotten():
    blocks = BlockAllocator(1, SIZE)
    (digest,) = prefix_digests(of("a"), range(SIZE), SIZE)
    assert blocks.allocate(1) == [0]
    blocks.publish(0, digest)
    blocks.free([0])
    assert blocks.allocate(1) == [0]
    assert blocks.take_prefix([digest]) == []
    assert blocks.allocate(1) is None


def test_freeing_twice_is_refused():
    blocks = BlockAllocator(2, SIZE)
    held = blocks.allocate(1)
    assert held is not None
    blocks.free(held)
    with pytest.raises(ValueError, match="freed twice"):
        blocks.free(held)


PROMPTS = st.lists(st.integers(0, 1), max_size=4 * SIZE)


@LAW
@given(st.lists(st.one_of(PROMPTS, st.integers(0, 40)), max_size=60))
def test_no_trace_leaks_a_block_or_frees_one_twice(trace: list[list[int] | int]):
    """A list is a prompt that comes, a number which of those that are there goes."""
    blocks = BlockAllocator(16, SIZE)
    live: list[list[int]] = []
    for step in trace:
        if isinstance(step, int):
            if live:
                blocks.free(live.pop(step % len(live)))
        else:
            digests = list(prefix_digests(of("a"), step, SIZE))
            shared = blocks.take_prefix(digests)
            fresh = blocks.allocate(len(digests) - len(shared))
            if fresh is None:
                blocks.free(shared)
                continue
            for block, digest in zip(shared + fresh, digests, strict=True):
                blocks.publish(block, digest)
            live.append(shared + fresh)
        assert blocks.num_free == 16 - len({block for held in live for block in held})
    for held in live:
        blocks.free(held)
    assert blocks.num_free == 16

"""BlockAllocator: nothing leaks, nothing is shared across adapters or contents."""

import random

import pytest

from multilora.request import AdapterSet, AdapterWeight
from multilora.scheduling.kv_blocks import BlockAllocator, prefix_digests

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


def test_a_chain_of_digests_can_be_continued():
    tokens = list(range(5 * SIZE))
    whole = list(prefix_digests(of("a"), tokens, SIZE))
    rest = list(prefix_digests(of("a"), tokens[2 * SIZE :], SIZE, start=whole[1]))
    assert rest == whole[2:]


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


@pytest.mark.parametrize("seed", range(20))
def test_random_traces_keep_every_block_accounted_for(seed: int):
    rng = random.Random(seed)
    blocks = BlockAllocator(16, SIZE)
    live: list[list[int]] = []
    prompts = [[rng.randrange(4) for _ in range(SIZE * rng.randint(1, 4))] for _ in range(6)]
    for _ in range(300):
        if live and rng.random() < 0.5:
            blocks.free(live.pop(rng.randrange(len(live))))
        else:
            digests = list(prefix_digests(of("a"), rng.choice(prompts), SIZE))
            shared = blocks.take_prefix(digests)
            fresh = blocks.allocate(len(digests) - len(shared))
            if fresh is None:
                blocks.free(shared)
                continue
            for block, digest in zip(shared + fresh, digests, strict=True):
                blocks.publish(block, digest)
            live.append(shared + fresh)
        used = {block for held in live for block in held}
        assert blocks.num_free == 16 - len(used)
    for held in live:
        blocks.free(held)
    assert blocks.num_free == 16

"""The KV blocks that sequences hold: taken, filled, shared with later ones, given back."""

from array import array

from multilora.scheduling.kv_blocks import BlockAllocator, prefix_digests
from multilora.scheduling.sequence import Sequence


class SequenceBlocks:
    """Keeps `block_table`, `block_digests` and `num_computed_tokens` of each sequence."""

    def __init__(self, blocks: BlockAllocator) -> None:
        self.blocks = blocks
        self.cached_tokens = 0  # prompt tokens found in the cache, over all sequences

    def take(self, sequence: Sequence) -> bool:
        """Blocks for all known tokens, cached ones first; on False nothing is held."""
        size = self.blocks.block_size
        known = len(sequence.token_ids)
        digests = list(prefix_digests(sequence.adapter_key, sequence.token_ids[: known - 1], size))
        cached = self.blocks.take_prefix(digests)
        fresh = self.blocks.allocate(self.blocks.blocks_for(known) - len(cached))
        if fresh is None:
            self.blocks.free(cached)
            return False
        sequence.block_table = array("i", cached + fresh)
        sequence.block_digests = digests[: len(cached)]
        sequence.num_computed_tokens = len(cached) * size
        self.cached_tokens += sequence.num_computed_tokens
        return True

    def extend(self, sequence: Sequence, count: int) -> bool:
        """Blocks for `count` tokens more than are computed; on False nothing has changed."""
        needed = self.blocks.blocks_for(sequence.num_computed_tokens + count)
        blocks = self.blocks.allocate(needed - len(sequence.block_table))
        if blocks is None:
            return False
        sequence.block_table.extend(blocks)
        return True

    def publish(self, sequence: Sequence) -> None:
        """Let later sequences find the blocks that have become full."""
        digests = sequence.block_digests
        size = self.blocks.block_size
        if sequence.num_computed_tokens < (len(digests) + 1) * size:
            return
        tokens = sequence.token_ids[len(digests) * size : sequence.num_computed_tokens]
        start = digests[-1] if digests else None
        for digest in prefix_digests(sequence.adapter_key, tokens, size, start):
            self.blocks.publish(sequence.block_table[len(digests)], digest)
            digests.append(digest)

    def drop(self, sequence: Sequence) -> None:
        self.blocks.free(sequence.block_table)
        sequence.block_table = array("i")
        sequence.block_digests = []
        sequence.num_computed_tokens = 0

"""KV blocks: which are free, who shares them, and what stands in them.

A full block is known by a digest chained over all tokens before it and seeded with the adapter's
content identity, so a prefix is only ever reused by the same version of the same adapter. A free
block keeps its digest until it is handed out again, least recently freed first.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Tokens
from hashlib import blake2b

from multilora.request import AdapterSet
from multilora.scheduling.sequence import Sequence


class BlockAllocator:
    """`num_blocks` KV blocks of `block_size` tokens, with reference counts and a prefix index."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._references = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._by_digest: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def take_prefix(self, digests: Iterable[bytes]) -> list[int]:
        """Reference the longest run of known blocks from the start of `digests`."""
        blocks: list[int] = []
        for digest in digests:
            block = self._by_digest.get(digest)
            if block is None:
                break
            self._references[block] += 1
            self._free.pop(block, None)
            blocks.append(block)
        return blocks

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one reference each, or None (and nothing taken) when too few."""
        if count > len(self._free):
            return None
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._forget(block)
            self._references[block] = 1
        return blocks

    def free(self, blocks: Tokens[int]) -> None:
        """Drop one reference of each. The last blocks of a sequence are reused first."""
        for block in reversed(blocks):
            if self._references[block] < 1:
                raise ValueError(f"KV block {block} freed twice")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None

    def publish(self, block: int, digest: bytes) -> None:
        """Say that `block` is full and holds what `digest` names. The first holder keeps it."""
        if digest not in self._by_digest and self._digests[block] is None:
            self._by_digest[digest] = block
            self._digests[block] = digest

    def _forget(self, block: int) -> None:
        digest = self._digests[block]
        if digest is not None:
            del self._by_digest[digest]
            self._digests[block] = None


def prefix_digests(
    adapters: AdapterSet, token_ids: Tokens[int], block_size: int, start: bytes | None = None
) -> Iterable[bytes]:
    """The chained digest of each full block of `token_ids`, in order.

    `start` continues a chain: the digest of the block before `token_ids`.
    """
    digest = start or blake2b(repr(adapters).encode(), digest_size=16).digest()
    for end in range(block_size, len(token_ids) + 1, block_size):
        tokens = array("q", token_ids[end - block_size : end]).tobytes()
        digest = blake2b(digest + tokens, digest_size=16).digest()
        yield digest


class KVBlocks:
    """The blocks that sequences hold: taken, filled, shared with later ones, given back.

    Keeps `block_table`, `block_digests` and `num_computed_tokens` of each sequence.
    """

    def __init__(self, blocks: BlockAllocator) -> None:
        self.blocks = blocks
        self.cached_tokens = 0  # prompt tokens found in the cache, over all sequences

    def take(self, sequence: Sequence) -> bool:
        """Blocks for all known tokens, cached ones first; on False nothing is held."""
        size = self.blocks.block_size
        known = len(sequence.token_ids)
        cacheable = sequence.token_ids[: sequence.num_cacheable_tokens]
        digests = list(prefix_digests(sequence.adapters, cacheable, size))
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
        if needed <= len(sequence.block_table):
            return True
        blocks = self.blocks.allocate(needed - len(sequence.block_table))
        if blocks is None:
            return False
        sequence.block_table.extend(blocks)
        return True

    def publish(self, sequence: Sequence, end: int) -> None:
        """Let later sequences find the blocks that are full now that the tokens before `end`, all
        of them known, have been computed."""
        digests = sequence.block_digests
        size = self.blocks.block_size
        if end < (len(digests) + 1) * size:
            return
        tokens = sequence.token_ids[len(digests) * size : end]
        start = digests[-1] if digests else None
        for digest in prefix_digests(sequence.adapters, tokens, size, start):
            self.blocks.publish(sequence.block_table[len(digests)], digest)
            digests.append(digest)

    def drop(self, sequence: Sequence) -> None:
        self.blocks.free(sequence.block_table)
        sequence.block_table = array("i")
        sequence.block_digests = []
        sequence.num_computed_tokens = 0

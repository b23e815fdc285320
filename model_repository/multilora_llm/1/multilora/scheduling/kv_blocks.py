"""KV blocks: which are free, who shares them, and what stands in them.

A full block is known by a digest chained over all tokens before it and seeded with the adapter's
content identity, so a prefix is only ever reused by the same version of the same adapter. A free
block keeps its digest until it is handed out again, least recently freed first.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b


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

    def free(self, blocks: Sequence[int]) -> None:
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
    adapter_key: str, token_ids: Sequence[int], block_size: int, start: bytes | None = None
) -> Iterable[bytes]:
    """The chained digest of each full block of `token_ids`, in order.

    `start` continues a chain: the digest of the block before `token_ids`.
    """
    digest = start or blake2b(adapter_key.encode(), digest_size=16).digest()
    for end in range(block_size, len(token_ids) + 1, block_size):
        tokens = array("q", token_ids[end - block_size : end]).tobytes()
        digest = blake2b(digest + tokens, digest_size=16).digest()
        yield digest

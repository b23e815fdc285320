"""A scheduler and adapter memory without tensors, driven pass by pass."""

from collections.abc import Callable
from typing import Any

from multilora.adapters.memory.page_allocator import RankPageAllocator
from multilora.errors import invalid
from multilora.request import AdapterSet, PromptToken, Request, TokenOutput
from multilora.scheduling.adapter_cache import CacheMiss
from multilora.scheduling.batch import Batch, SampledToken
from multilora.scheduling.kv_blocks import BlockAllocator
from multilora.scheduling.scheduler import Scheduler, SchedulerLimits
from multilora_api.sampling import SamplingParams

EOS = 1
BLOCK = 8


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeCache:
    """An AdapterCache over a real RankPageAllocator, where an id is the key of its first version.

    Reading and failing as told; copying takes `copy_passes` passes.
    """

    def __init__(
        self, num_pages: int, sizes: dict[str, int] | None = None, copy_passes: int = 0
    ) -> None:
        self.slots = RankPageAllocator(num_pages)
        self.sizes = sizes or {}
        self.copy_passes = copy_passes
        self.loading: set[str] = set()
        self.broken: set[str] = set()
        self.asked = 0
        self._copies: dict[str, int] = {}  # key → passes to come
        self._keys: dict[str, str] = {}  # adapter id → key of the version in use, if a later one
        self._retired: set[str] = set()

    def tick(self) -> None:
        """Between two passes: go on copying."""
        for name in list(self._copies):
            self._copies[name] -= 1
            if self._copies[name] == 0:
                del self._copies[name]
                self.slots.mark_ready(name)
                self._evict_retired(name)

    def replace(self, adapter_id: str, wanted: bool) -> None:
        """New sequences use a new version, which takes free pages now; `wanted`: some wait."""
        old = self._key(adapter_id)
        self._keys[adapter_id] = new = f"{adapter_id}@{len(self._keys)}{old}"
        if old in self.slots:
            self._retired.add(old)
            self._evict_retired(old)
        if (size := self.sizes.get(adapter_id, 1)) <= self.slots.num_free:
            self._reserve(new, size, wanted)

    def acquire(self, adapters: AdapterSet) -> AdapterSet | CacheMiss:
        self.asked += 1
        adapter_id, key = adapters.only, self._key(adapters.only)
        if adapter_id in self.broken:
            raise invalid(f"{adapter_id} is broken")
        if adapter_id in self.loading:
            return CacheMiss.LOADING
        if key not in self.slots and not self._reserve(key, self.sizes.get(adapter_id, 1), True):
            return CacheMiss.NO_ROOM
        if key in self._copies:
            return CacheMiss.LOADING
        self.slots.acquire(key)
        return AdapterSet.of(key)

    def release(self, key: AdapterSet) -> None:
        self.slots.release(key.only)
        self._evict_retired(key.only)

    def pages(self, key: AdapterSet) -> tuple[int, ...]:
        return self.slots.pages(key.only)

    def unwanted(self, adapters: AdapterSet) -> None:
        if self.is_resident(adapters):
            self.slots.want(self._key(adapters.only), False)

    def end_token_ids(self, adapters: AdapterSet) -> frozenset[int]:
        return frozenset()

    def is_resident(self, adapters: AdapterSet) -> bool:
        return self._key(adapters.only) in self.slots

    def is_kept(self, adapters: AdapterSet) -> bool:
        return self.is_resident(adapters) and self.slots.is_wanted(self._key(adapters.only))

    def shortage(self, adapters: AdapterSet) -> int:
        if self.is_resident(adapters) or adapters.only in self.loading:
            return 0
        return self.slots.shortage(self.sizes.get(adapters.only, 1))

    def _key(self, adapter_id: str) -> str:
        return self._keys.get(adapter_id, adapter_id)

    def _reserve(self, key: str, size: int, wanted: bool) -> bool:
        if self.slots.reserve(key, size, wanted) is None:
            return False
        if self.copy_passes:
            self._copies[key] = self.copy_passes
        else:
            self.slots.mark_ready(key)
        return True

    def _evict_retired(self, key: str) -> None:
        if key in self._retired and self.slots.is_ready(key) and not self.slots.references(key):
            self._retired.remove(key)
            self.slots.evict(key)


def make(
    cache: FakeCache | None = None,
    num_blocks: int = 64,
    clock: Callable[[], float] = lambda: 0.0,
    **limits: int,
) -> Scheduler:
    values = {"max_running": 8, "max_batch_prefill_tokens": 32, "max_total_tokens": 128} | limits
    return Scheduler(
        SchedulerLimits(eos_token_ids=frozenset({EOS}), **values),
        BlockAllocator(num_blocks, BLOCK),
        cache or FakeCache(8),
        clock,
    )


def request(name: str, prompt: int = 4, adapter: str = "", **sampling: Any) -> Request:
    tokens = tuple(sum(map(ord, name)) % 1000 + 10 + i for i in range(prompt))
    return Request(name, tokens, adapter, SamplingParams(**{"max_tokens": 4, **sampling}))


def run(scheduler: Scheduler, token: int = 7) -> tuple[Batch, list[TokenOutput]]:
    """One pass that samples `token` everywhere."""
    batch = scheduler.schedule()
    count = sum(item.samples for item in batch.items)
    prompts = [
        tuple(PromptToken(item.sequence.token_ids[place], -1.0, (), 1) for place in item.scored)
        for item in batch.items
        if item.scored
    ]
    scheduler.postprocess(batch, [SampledToken(token)] * count, prompts)
    return batch, scheduler.take_outputs()


def names(batch: Batch) -> list[tuple[str, int]]:
    return [(item.sequence.request.request_id, item.num_new_tokens) for item in batch.items]

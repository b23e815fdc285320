"""AdapterSlots: pages of any ranks, least recently used leaves, the used stay, the pinned last."""

import random

import pytest

from multilora.adapters.memory.page_allocator import AdapterSlots


def fill(slots: AdapterSlots, key: str, count: int) -> tuple[int, ...] | None:
    """Reserve, copy and use once."""
    pages = slots.reserve(key, count)
    if pages is not None:
        slots.mark_ready(key)
        slots.acquire(key)
        slots.release(key)
    return pages


def test_lowest_pages_first_and_least_recently_used_leaves():
    slots = AdapterSlots(6)
    assert fill(slots, "a", 2) == (0, 1)
    assert fill(slots, "b", 1) == (2,)
    assert fill(slots, "c", 2) == (3, 4)
    slots.acquire("a")
    slots.release("a")
    assert fill(slots, "d", 2) == (2, 5)
    assert "b" not in slots
    assert slots.resident == ["c", "a", "d"]
    assert slots.evictions == 1


def test_what_is_used_stays_and_a_failed_reserve_evicts_nothing():
    slots = AdapterSlots(4)
    for key in "abc":
        fill(slots, key, 1)
    slots.acquire("a")
    assert slots.shortage(4) == 1
    assert slots.reserve("d", 4) is None
    assert set(slots.resident) == {"a", "b", "c"}
    with pytest.raises(ValueError, match="in use"):
        slots.evict("a")
    slots.release("a")
    with pytest.raises(ValueError, match="released twice"):
        slots.release("a")
    assert slots.shortage(4) == 0
    assert slots.reserve("d", 4) == (0, 1, 2, 3)


def test_pinned_adapters_leave_last():
    slots = AdapterSlots(3)
    for key in "abc":
        fill(slots, key, 1)
    slots.pin("a")
    assert fill(slots, "d", 1) == (1,)
    assert slots.resident == ["a", "c", "d"]
    assert fill(slots, "e", 3) == (0, 1, 2)
    assert slots.resident == ["e"]


def test_a_copy_in_progress_and_a_fresh_copy_cannot_be_evicted():
    slots = AdapterSlots(2)
    slots.reserve("a", 2, wanted=True)
    with pytest.raises(ValueError, match="still being copied"):
        slots.acquire("a")
    assert slots.reserve("b", 1) is None
    slots.mark_ready("a")
    assert slots.reserve("b", 1) is None  # whoever asked for a has not come back for it yet
    slots.want("a", False)
    assert slots.reserve("b", 1) == (0,)  # and will not


def test_a_copy_that_nobody_waits_for_may_be_evicted_at_once():
    slots = AdapterSlots(2)
    slots.reserve("a", 2)
    slots.mark_ready("a")
    assert slots.reserve("b", 1) == (0,)


def test_who_waits_may_come_and_leave_during_the_copy():
    slots = AdapterSlots(2)
    slots.reserve("a", 1)
    slots.want("a", True)
    slots.reserve("b", 1, wanted=True)
    slots.want("b", False)
    slots.mark_ready("a")
    slots.mark_ready("b")
    assert slots.shortage(2) == 1
    assert slots.reserve("c", 1) == (1,)
    assert slots.resident == ["a", "c"]


def test_the_first_use_after_a_copy_is_told_from_later_ones():
    slots = AdapterSlots(1)
    slots.reserve("a", 1)
    slots.mark_ready("a")
    assert [slots.acquire("a") for _ in range(3)] == [True, False, False]


@pytest.mark.parametrize("seed", range(20))
def test_random_traces_never_share_or_lose_a_page(seed: int):
    rng = random.Random(seed)
    slots = AdapterSlots(12)
    held: list[str] = []
    for step in range(400):
        if held and rng.random() < 0.5:
            slots.release(held.pop(rng.randrange(len(held))))
            continue
        key = f"a{rng.randrange(10)}"
        count = rng.randint(1, 5)
        if key not in slots:
            short = slots.shortage(count)
            pages = slots.reserve(key, count, wanted=rng.random() < 0.5)
            assert (pages is None) is (short > 0)
            if pages is None:
                continue
        if slots.is_ready(key) or rng.random() < 0.5:
            if not slots.is_ready(key):
                slots.mark_ready(key)
                if rng.random() < 0.3:
                    slots.want(key, rng.random() < 0.5)
                    continue
            slots.acquire(key)
            held.append(key)
        slots.pin(key, rng.random() < 0.3)
        pages = [page for name in slots.resident for page in slots.pages(name)]
        assert len(pages) == len(set(pages)) == 12 - slots.num_free, step
        assert set(held) <= set(slots.resident)
        assert slots.num_references == len(held)
        movable = sum(len(slots.pages(victim)) for victim in slots._victims(12))
        assert slots.shortage(12) == 12 - slots.num_free - movable

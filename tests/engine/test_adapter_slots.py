"""AdapterSlots: pages of any ranks, least recently used leaves, the used and pinned stay."""

import random

import pytest

from multilora.adapter_slots import AdapterSlots


def test_lowest_pages_first_and_least_recently_used_leaves():
    slots = AdapterSlots(6)
    assert slots.reserve("a", 2) == (0, 1)
    assert slots.reserve("b", 1) == (2,)
    assert slots.reserve("c", 2) == (3, 4)
    slots.acquire("a")
    slots.release("a")
    assert slots.reserve("d", 2) == (2, 5)
    assert "b" not in slots
    assert slots.resident == ["c", "a", "d"]
    assert slots.evictions == 1


def test_what_is_used_or_pinned_stays_and_a_failed_reserve_evicts_nothing():
    slots = AdapterSlots(4)
    for key in "abc":
        slots.reserve(key, 1)
    slots.acquire("a")
    slots.pin("b")
    assert slots.reserve("d", 3) is None
    assert set(slots.resident) == {"a", "b", "c"}
    assert slots.reserve("d", 2) == (2, 3)
    with pytest.raises(ValueError, match="in use"):
        slots.evict("a")
    slots.release("a")
    with pytest.raises(ValueError, match="released twice"):
        slots.release("a")
    slots.pin("b", False)
    assert slots.reserve("e", 4) == (0, 1, 2, 3)


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
        if key not in slots and slots.reserve(key, rng.randint(1, 5)) is None:
            continue
        slots.acquire(key)
        held.append(key)
        pages = [page for name in slots.resident for page in slots.pages(name)]
        assert len(pages) == len(set(pages)) == 12 - slots.num_free, step
        assert set(held) <= set(slots.resident)
        assert slots.num_references == len(held)

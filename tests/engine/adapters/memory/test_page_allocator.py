"""RankPageAllocator: any ranks; the used stay, the least recently used go, the pinned last."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multilora.adapters.memory.page_allocator import RankPageAllocator
from support.laws import LAW


def fill(allocator: RankPageAllocator, key: str, count: int) -> tuple[int, ...] | None:
    """Reserve, copy and use once."""
    pages = allocator.reserve(key, count)
    if pages is not None:
        allocator.mark_ready(key)
        allocator.acquire(key)
        allocator.release(key)
    return pages


def test_lowest_pages_first_and_least_recently_used_leaves():
    allocator = RankPageAllocator(6)
    assert fill(allocator, "a", 2) == (0, 1)
    assert fill(allocator, "b", 1) == (2,)
    assert fill(allocator, "c", 2) == (3, 4)
    allocator.acquire("a")
    allocator.release("a")
    assert fill(allocator, "d", 2) == (2, 5)
    assert "b" not in allocator
    assert allocator.resident == ["c", "a", "d"]
    assert allocator.evictions == 1


def test_what_is_used_stays_and_a_failed_reserve_evicts_nothing():
    allocator = RankPageAllocator(4)
    for key in "abc":
        fill(allocator, key, 1)
    allocator.acquire("a")
    assert allocator.shortage(4) == 1
    assert allocator.reserve("d", 4) is None
    assert set(allocator.resident) == {"a", "b", "c"}
    with pytest.raises(ValueError, match="in use"):
        allocator.evict("a")
    allocator.release("a")
    with pytest.raises(ValueError, match="released twice"):
        allocator.release("a")
    assert allocator.shortage(4) == 0
    assert allocator.reserve("d", 4) == (0, 1, 2, 3)


def test_pinned_adapters_leave_last():
    allocator = RankPageAllocator(3)
    for key in "abc":
        fill(allocator, key, 1)
    allocator.pin("a")
    assert fill(allocator, "d", 1) == (1,)
    assert allocator.resident == ["a", "c", "d"]
    assert fill(allocator, "e", 3) == (0, 1, 2)
    assert allocator.resident == ["e"]


def test_a_copy_in_progress_and_a_fresh_copy_cannot_be_evicted():
    allocator = RankPageAllocator(2)
    allocator.reserve("a", 2, wanted=True)
    with pytest.raises(ValueError, match="still being copied"):
        allocator.acquire("a")
    assert allocator.reserve("b", 1) is None
    allocator.mark_ready("a")
    assert allocator.reserve("b", 1) is None  # whoever asked for a has not come back for it yet
    allocator.want("a", False)
    assert allocator.reserve("b", 1) == (0,)  # and will not


def test_a_copy_that_nobody_waits_for_may_be_evicted_at_once():
    allocator = RankPageAllocator(2)
    allocator.reserve("a", 2)
    allocator.mark_ready("a")
    assert allocator.reserve("b", 1) == (0,)


def test_who_waits_may_come_and_leave_during_the_copy():
    allocator = RankPageAllocator(2)
    allocator.reserve("a", 1)
    allocator.want("a", True)
    allocator.reserve("b", 1, wanted=True)
    allocator.want("b", False)
    allocator.mark_ready("a")
    allocator.mark_ready("b")
    assert allocator.shortage(2) == 1
    assert allocator.reserve("c", 1) == (1,)
    assert allocator.resident == ["a", "c"]


def test_the_first_use_after_a_copy_is_told_from_later_ones():
    allocator = RankPageAllocator(1)
    allocator.reserve("a", 1)
    allocator.mark_ready("a")
    assert [allocator.acquire("a") for _ in range(3)] == [True, False, False]


ACTS = ("reserve", "reserve for one who waits", "copied", "use", "release", "want", "pin", "evict")


@LAW
@given(
    st.lists(
        st.tuples(st.sampled_from(ACTS), st.integers(0, 3), st.integers(1, 5)),
        min_size=40,
        max_size=99,
    )
)
def test_no_trace_shares_or_loses_a_page(trace: list[tuple[str, int, int]]) -> None:
    """Each step does an act to an adapter, if it may, with a count of pages or as a yes or no."""
    allocator = RankPageAllocator(12)
    held: list[str] = []
    for act, number, count in trace:
        key = f"a{number}"
        if key not in allocator:
            short = allocator.shortage(count)
            if act.startswith("reserve"):
                pages = allocator.reserve(key, count, wanted=act != "reserve")
                assert (pages is None) is (short > 0)
        elif act == "use" and allocator.is_ready(key):
            allocator.acquire(key)
            held.append(key)
        elif act == "release" and key in held:
            held.remove(key)
            allocator.release(key)
        elif act == "copied" and not allocator.is_ready(key):
            allocator.mark_ready(key)
        elif act == "want":
            allocator.want(key, count > 2)
        elif act == "pin":
            allocator.pin(key, count > 2)
        elif act == "evict" and key not in held:
            allocator.evict(key)
        pages = [page for name in allocator.resident for page in allocator.pages(name)]
        assert len(pages) == len(set(pages)) == 12 - allocator.num_free
        assert set(held) <= set(allocator.resident)
        assert allocator.num_references == len(held)
        movable = sum(len(allocator.pages(victim)) for victim in allocator._victims(12))
        assert allocator.shortage(12) == 12 - allocator.num_free - movable

"""PageReservations: starved adapters get pages in turn, at the least cost to those that run."""

from multilora.request import AdapterSet
from multilora.scheduling.reservations import PageReservations
from multilora.scheduling.sequence import Sequence
from support.engine.scheduler import FakeCache, request

of = AdapterSet.of


def in_use(cache: FakeCache, names: str, version: str = "") -> list[Sequence]:
    """Running sequences, one on each adapter."""
    for name in names:
        cache.slots.reserve(name + version, 1)
        cache.slots.mark_ready(name + version)
        cache.slots.acquire(name + version)
    return [Sequence(request(name, adapter=name), adapters=of(name + version)) for name in names]


def test_a_preempted_sequence_of_a_closed_adapter_goes_on():
    cache = FakeCache(1)
    cache.acquire(of("a"))
    reservations = PageReservations(cache, patience=0)
    reservations.refuse(of("x"))
    reservations.begin([Sequence(request("runs", adapter="a"), adapters=of("a"))])
    assert reservations.open == [of("x")]
    assert not reservations.admits(Sequence(request("new", adapter="a")))
    assert reservations.admits(Sequence(request("begun", adapter="a"), admitted=True))


def test_a_new_version_of_a_closed_adapter_is_used_before_it_gives_its_pages_back():
    """Or a reservation waits for pages that nobody can free, and all others for the reservation."""
    cache = FakeCache(1)
    running = in_use(cache, "a")
    reservations = PageReservations(cache, patience=0)
    reservations.refuse(of("x"))
    reservations.begin(running)
    new = Sequence(request("new", adapter="a"))
    assert not reservations.admits(new)
    cache.release(of("a"))
    cache.slots.evict("a")  # it is replaced, and a request waits for it
    cache.slots.reserve("a", 1, wanted=True)
    cache.slots.mark_ready("a")
    reservations.begin([])
    assert reservations.open == [of("x")] and not cache.is_resident(of("x"))
    assert reservations.admits(new)
    new.adapters = of("a")
    cache.acquire(of("a"))
    reservations.begin([new])
    assert not reservations.admits(Sequence(request("next", adapter="a")))
    cache.release(of("a"))
    reservations.begin([])
    assert cache.is_resident(of("x"))


def test_a_younger_reservation_takes_nothing_from_an_older_one():
    cache = FakeCache(8, {"big": 2}, copy_passes=2)
    running = in_use(cache, "abcdefgh")
    reservations = PageReservations(cache, patience=0)
    reservations.refuse(of("big"))
    reservations.refuse(of("small"))
    for resident in [(False, False), (False, False), (True, False), (True, True)]:
        cache.tick()
        reservations.begin(running)
        assert reservations.open == [of("big"), of("small")]
        assert (cache.is_resident(of("big")), cache.is_resident(of("small"))) == resident
        cache.release(running.pop().adapters)


def test_a_reservation_stays_open_until_its_pages_are_used():
    cache = FakeCache(1)
    running = in_use(cache, "a")
    reservations = PageReservations(cache, patience=0)
    reservations.refuse(of("x"))
    reservations.begin(running)
    cache.release(of("a"))
    for _ in range(3):
        reservations.begin([])
        assert cache.is_resident(of("x")) and reservations.open == [of("x")]
        assert not reservations.admits(Sequence(request("other", adapter="y")))
    reservations.settle(of("x"))
    assert reservations.admits(Sequence(request("other", adapter="y")))


def test_a_reservation_waits_for_the_old_version_of_its_own_adapter_too():
    cache = FakeCache(4, copy_passes=2)  # of the four, adapter 0 comes first
    running = in_use(cache, "0", version="@old") + in_use(cache, "abc")
    reservations = PageReservations(cache, patience=0)
    reservations.refuse(of("0"))
    reservations.refuse(of("y"))
    reservations.begin(running)
    cache.release(of("0@old"))
    reservations.begin(running[1:])
    assert cache.is_resident(of("0")) and not cache.is_resident(of("y"))
    assert reservations.admits(Sequence(request("new", adapter="0")))


def test_an_adapter_that_is_read_again_begins_to_wait_for_room_anew():
    cache = FakeCache(1)
    cache.acquire(of("a"))
    running = [Sequence(request("runs", adapter="a"), adapters=of("a"))]
    reservations = PageReservations(cache, patience=5)
    for step in range(20):
        reservations.begin(running)
        if reservations.open:
            break
        if step == 4:
            reservations.wait_for_load(of("x"))
        else:
            reservations.refuse(of("x"))
    assert reservations._pass == 6 + 5  # first refused in pass 6, as in pass 5 it was being read


def test_a_second_round_of_reservations_closes_only_what_it_needs_itself():
    cache = FakeCache(2)
    short, long = in_use(cache, "ab")
    reservations = PageReservations(cache, patience=0)
    reservations.refuse(of("x"))
    reservations.begin([short, long])
    assert not reservations.admits(Sequence(request("new", adapter="a")))
    reservations.settle(of("x"))  # who waited for x has left
    short.request = request("a", adapter="a", max_tokens=50)
    reservations.refuse(of("y"))
    reservations.begin([short, long])
    assert reservations.admits(Sequence(request("new", adapter="a")))
    assert not reservations.admits(Sequence(request("new", adapter="b")))


def test_what_was_closed_is_opened_once_the_reservations_have_their_pages():
    cache = FakeCache(3, {"c": 1, "x": 1}, copy_passes=2)
    running = in_use(cache, "ac")
    reservations = PageReservations(cache, patience=0)
    in_use(cache, "d")  # on a page of its own, and soon idle
    reservations.refuse(of("x"))
    reservations.begin(running)
    assert not reservations.admits(Sequence(request("new", adapter="a")))
    cache.release(of("d"))
    reservations.begin(running)
    assert cache.is_resident(of("x"))
    assert reservations.admits(Sequence(request("new", adapter="a")))

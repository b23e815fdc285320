"""AdapterClaims: starved adapters get pages in turn, at the least cost to those that run."""

from multilora.scheduling.reservations import AdapterClaims
from multilora.scheduling.sequence import Sequence
from support.engine.scheduler import Gate, request


def in_use(gate: Gate, names: str, version: str = "") -> list[Sequence]:
    """Running sequences, one on each adapter."""
    for name in names:
        gate.slots.reserve(name + version, 1)
        gate.slots.mark_ready(name + version)
        gate.slots.acquire(name + version)
    return [Sequence(request(name, adapter=name), adapter_key=name + version) for name in names]


def test_a_preempted_sequence_of_a_closed_adapter_goes_on():
    gate = Gate(1)
    gate.acquire("a")
    claims = AdapterClaims(gate, patience=0)
    claims.refuse("x")
    claims.begin([Sequence(request("runs", adapter="a"), adapter_key="a")])
    assert claims.open == ["x"]
    assert not claims.admits(Sequence(request("new", adapter="a")))
    assert claims.admits(Sequence(request("begun", adapter="a"), admitted=True))


def test_a_younger_claim_takes_nothing_from_an_older_one():
    gate = Gate(8, {"big": 2}, copy_passes=2)
    running = in_use(gate, "abcdefgh")
    claims = AdapterClaims(gate, patience=0)
    claims.refuse("big")
    claims.refuse("small")
    for resident in [(False, False), (False, False), (True, False), (True, True)]:
        gate.tick()
        claims.begin(running)
        assert claims.open == ["big", "small"]
        assert (gate.is_resident("big"), gate.is_resident("small")) == resident
        gate.release(running.pop().adapter_key)


def test_a_claim_stays_open_until_its_pages_are_used():
    gate = Gate(1)
    running = in_use(gate, "a")
    claims = AdapterClaims(gate, patience=0)
    claims.refuse("x")
    claims.begin(running)
    gate.release("a")
    for _ in range(3):
        claims.begin([])
        assert gate.is_resident("x") and claims.open == ["x"]
        assert not claims.admits(Sequence(request("other", adapter="y")))
    claims.settle("x")
    assert claims.admits(Sequence(request("other", adapter="y")))


def test_a_claim_waits_for_the_old_version_of_its_own_adapter_too():
    gate = Gate(4, copy_passes=2)  # of the four, adapter 0 comes first
    running = in_use(gate, "0", version="@old") + in_use(gate, "abc")
    claims = AdapterClaims(gate, patience=0)
    claims.refuse("0")
    claims.refuse("y")
    claims.begin(running)
    gate.release("0@old")
    claims.begin(running[1:])
    assert gate.is_resident("0") and not gate.is_resident("y")
    assert claims.admits(Sequence(request("new", adapter="0")))


def test_an_adapter_that_is_read_again_begins_to_wait_for_room_anew():
    gate = Gate(1)
    gate.acquire("a")
    running = [Sequence(request("runs", adapter="a"), adapter_key="a")]
    claims = AdapterClaims(gate, patience=5)
    for step in range(20):
        claims.begin(running)
        if claims.open:
            break
        if step == 4:
            claims.wait_for_load("x")
        else:
            claims.refuse("x")
    assert claims._pass == 6 + 5  # first refused in pass 6, as in pass 5 it was being read


def test_a_second_round_of_claims_closes_only_what_it_needs_itself():
    gate = Gate(2)
    short, long = in_use(gate, "ab")
    claims = AdapterClaims(gate, patience=0)
    claims.refuse("x")
    claims.begin([short, long])
    assert not claims.admits(Sequence(request("new", adapter="a")))
    claims.settle("x")  # who waited for x has left
    short.request = request("a", adapter="a", max_tokens=50)
    claims.refuse("y")
    claims.begin([short, long])
    assert claims.admits(Sequence(request("new", adapter="a")))
    assert not claims.admits(Sequence(request("new", adapter="b")))


def test_what_was_closed_is_opened_once_the_claims_have_their_pages():
    gate = Gate(3, {"c": 1, "x": 1}, copy_passes=2)
    running = in_use(gate, "ac")
    claims = AdapterClaims(gate, patience=0)
    in_use(gate, "d")  # on a page of its own, and soon idle
    claims.refuse("x")
    claims.begin(running)
    assert not claims.admits(Sequence(request("new", adapter="a")))
    gate.release("d")
    claims.begin(running)
    assert gate.is_resident("x")
    assert claims.admits(Sequence(request("new", adapter="a")))

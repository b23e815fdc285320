"""AdapterManager: loading, replacing, unloading and the tiers, with real files and a real pool."""

import threading
from typing import Any

import pytest
import torch

from multilora.errors import ErrorCode, RequestError
from multilora.request import AdapterSet
from multilora.scheduling.adapter_cache import CacheMiss
from support.engine.reading import pages_of, read_adapter
from support.engine.workshop import MakeShop


def test_one_read_serves_all_who_wait(make_shop: MakeShop):
    shop = make_shop()
    shop.gate.clear()
    shop.manager.register(shop.source("a"))
    answers: list[RequestError | None] = []
    assert [shop.ask("a") for _ in range(3)] == [CacheMiss.LOADING] * 3
    shop.manager.ensure_loaded(shop.source("a"), answers.append)
    assert (shop.num_reads <= 1, answers) == (True, [])
    shop.gate.set()
    shop.settle()
    assert (shop.num_reads, answers) == (1, [None])
    key = shop.acquire("a")
    assert (shop.manager.device.misses, shop.manager.device.hits) == (1, 0)
    assert shop.acquire("a") == key
    assert shop.manager.device.hits == 1


def test_two_loads_at_once_share_the_reads_and_see_the_newest_files(make_shop: MakeShop):
    shop = make_shop()
    shop.gate.clear()
    answers: list[RequestError | None] = []
    shop.manager.load(shop.source("a"), answers.append)
    shop.manager.load(shop.source("a"), answers.append)
    shop.manager.load(shop.source("a"), answers.append)
    shop.write("a", seed=77)
    shop.gate.set()
    shop.settle()
    assert answers == [None] * 3
    assert shop.num_reads == 2  # the one in progress, and one that began after the last call
    fresh = read_adapter(shop.root / "a", "a", shop.base.sites, torch.float32, 64)
    assert shop.acquire("a") == AdapterSet.of(fresh.key)


def test_an_adapter_is_not_used_before_it_has_been_copied_in_whole(
    make_shop: MakeShop, monkeypatch: pytest.MonkeyPatch
):
    shop = make_shop()
    tensors, gate = shop.manager.device.tensors, threading.Event()
    really_write = tensors.write

    def write(*arguments: Any) -> None:
        assert gate.wait(10)
        really_write(*arguments)

    monkeypatch.setattr(tensors, "write", write)
    shop.manager.register(shop.source("a"))
    assert shop.ask("a") is CacheMiss.LOADING
    while shop.manager.loading:
        shop.wake.wait(0.1)
        shop.manager.poll()
    assert shop.manager.device.is_copying
    assert shop.ask("a") is CacheMiss.LOADING
    assert shop.manager.tier(shop.manager.states["a"]) == "host"
    gate.set()
    shop.settle()
    key = shop.ask("a")
    assert isinstance(key, AdapterSet)
    pages = list(shop.manager.pages(key))
    adapter = read_adapter(shop.root / "a", "a", shop.base.sites, torch.float32, 64)
    expected = pages_of(adapter, shop.base.sites, torch.float32)
    for name in expected.a:
        assert torch.equal(tensors.a[name][pages], expected.a[name])
        assert torch.equal(tensors.b[name][pages], expected.b[name])


def test_what_is_unloaded_while_it_is_copied_keeps_its_pages_until_that_ends(
    make_shop: MakeShop, monkeypatch: pytest.MonkeyPatch
):
    shop = make_shop(num_pages=1)
    tensors, gate = shop.manager.device.tensors, threading.Event()
    really_write = tensors.write
    monkeypatch.setattr(tensors, "write", lambda *it: gate.wait(10) and really_write(*it))
    shop.manager.register(shop.source("a"))
    shop.ask("a")
    while shop.manager.loading:
        shop.wake.wait(0.1)
        shop.manager.poll()
    answers: list[RequestError | None] = []
    assert shop.manager.unload("a") > 0
    shop.manager.when_unloaded("a", answers.append)
    assert not answers and shop.manager.device.allocator.num_free == 0
    gate.set()
    shop.settle()
    assert answers == [None] and shop.manager.device.allocator.num_free == 1
    assert isinstance(shop.acquire("b"), AdapterSet)


def test_a_version_is_kept_for_its_first_sequence(make_shop: MakeShop):
    shop = make_shop()
    adapters = AdapterSet.of("a")
    assert not shop.manager.is_kept(adapters)
    shop.manager.prefetch(shop.source("a"))
    shop.settle()
    assert shop.manager.is_resident(adapters) and shop.manager.is_kept(adapters)
    shop.acquire("a")
    assert shop.manager.is_resident(adapters) and not shop.manager.is_kept(adapters)


def test_closing_waits_for_the_copy_in_progress_alone(
    make_shop: MakeShop, monkeypatch: pytest.MonkeyPatch
):
    shop = make_shop(num_pages=3)
    tensors, gate, copied = shop.manager.device.tensors, threading.Event(), list[Any]()
    really_write = tensors.write

    def write(pages: Any, *arguments: Any) -> None:
        copied.append(pages)
        assert gate.wait(10)
        really_write(pages, *arguments)

    monkeypatch.setattr(tensors, "write", write)
    for name in "abc":
        shop.manager.load(shop.source(name), lambda _: None)
    while shop.manager.loading or not copied:
        shop.wake.wait(0.1)
        shop.manager.poll()
    closing = threading.Thread(target=shop.manager.device.close)
    closing.start()
    while not shop.manager.device._closed:
        closing.join(0.01)
    gate.set()
    closing.join(10)
    assert not closing.is_alive() and len(copied) == 1


def test_a_full_pool_refuses_until_a_reference_is_given_back(make_shop: MakeShop):
    shop = make_shop(num_pages=1)
    key = shop.acquire("a")
    shop.manager.register(shop.source("b"))
    shop.ask("b")
    shop.settle()
    assert shop.ask("b") is CacheMiss.NO_ROOM
    assert (
        shop.manager.shortage(AdapterSet.of("b")),
        shop.manager.is_resident(AdapterSet.of("b")),
    ) == (1, False)
    shop.manager.release(key)
    assert shop.manager.shortage(AdapterSet.of("b")) == 0
    assert shop.acquire("b").only.startswith("b@")
    assert shop.manager.device.allocator.evictions == 1


def test_what_never_fits_is_refused_and_not_read_again_at_once(make_shop: MakeShop):
    shop = make_shop(num_pages=1)
    shop.write("big", seed=3, rank=40)
    shop.manager.register(shop.source("big"))
    shop.ask("big")
    shop.settle()
    for _ in range(3):
        with pytest.raises(RequestError, match="raise --adapter-memory") as caught:
            shop.ask("big")
        assert caught.value.code is ErrorCode.INVALID_ARG
    assert shop.num_reads == 1


def test_a_replaced_adapter_serves_new_sequences_while_old_ones_keep_theirs(
    make_shop: MakeShop,
):
    shop = make_shop()
    old = shop.acquire("a")
    shop.write("a", seed=55)
    shop.manager.refresh("a")
    shop.settle()
    new = shop.acquire("a")
    assert new != old
    assert set(shop.manager.pages(new)).isdisjoint(shop.manager.pages(old))
    shop.manager.release(old)
    assert old.only not in shop.manager.device
    assert shop.manager.device.num_pages("a") == 1
    shop.manager.release(new)
    assert new.only in shop.manager.device  # the version in use stays for the next request


def test_broken_new_files_leave_the_version_in_memory_in_use(make_shop: MakeShop):
    shop = make_shop()
    key = shop.acquire("a")
    (shop.root / "a" / "adapter_model.safetensors").write_bytes(b"rubbish")
    shop.manager.refresh("a")
    shop.settle()
    assert shop.acquire("a") == key
    state = shop.manager.states["a"]
    assert state.error is not None and "adapter_model.safetensors" in state.error.message
    shop.write("a", seed=9)
    shop.manager.refresh("a")
    shop.settle()
    assert shop.acquire("a") != key
    assert shop.manager.states["a"].error is None


def test_a_failed_adapter_can_be_retried_once_its_files_changed(make_shop: MakeShop):
    shop = make_shop()
    (shop.root / "a" / "adapter_config.json").write_text("{}")
    shop.manager.register(shop.source("a"))
    shop.ask("a")
    shop.settle()
    for _ in range(3):
        with pytest.raises(RequestError, match="peft_type"):
            shop.ask("a")
    assert (shop.num_reads, shop.manager.failures) == (1, 1)
    shop.write("a", seed=1)
    shop.manager.refresh("a")
    assert shop.acquire("a").only.startswith("a@")


def test_withdraw_frees_the_host_at_once_and_pages_with_the_last_reference(
    make_shop: MakeShop,
):
    shop = make_shop()
    key = shop.acquire("a")
    gone: list[RequestError | None] = []
    assert shop.manager.unload("a") == shop.host_bytes
    shop.manager.when_unloaded("a", gone.append)
    assert shop.manager.host.used_bytes == 0
    assert (shop.manager.device.num_pages("a"), gone) == (1, [])
    assert shop.manager.pages(key) == (0,)  # still there for the running sequence
    shop.manager.release(key)
    assert (shop.manager.device.allocator.num_free, gone) == (2, [None])


def test_a_load_withdrawn_while_it_goes_on_comes_to_nothing(make_shop: MakeShop):
    shop = make_shop()
    shop.gate.clear()
    answers: list[RequestError | None] = []
    shop.manager.load(shop.source("a"), answers.append)
    shop.manager.unload("a")
    shop.gate.set()
    shop.manager.load(shop.source("b"), answers.append)
    shop.settle()
    assert answers[0] is not None and "unloaded meanwhile" in answers[0].message
    assert answers[1] is None
    assert "a" not in shop.manager.host and "b" in shop.manager.host
    assert shop.manager.loading == 0


def test_an_unload_that_requests_undo_says_so(make_shop: MakeShop):
    shop = make_shop()
    shop.acquire("a")
    gone: list[RequestError | None] = []
    shop.manager.unload("a")
    shop.manager.when_unloaded("a", gone.append)
    again = shop.acquire("a")
    assert gone[0] is not None and "load it again" in gone[0].message
    assert again.only in shop.manager.device


def test_the_host_tier_drops_the_least_recently_used_and_reads_it_again(
    make_shop: MakeShop,
):
    shop = make_shop(num_pages=1, host_adapters=2)
    for name in "abc":
        shop.manager.release(shop.acquire(name))
    assert shop.manager.host.used_bytes == 2 * shop.host_bytes
    assert "a" not in shop.manager.host and "b" in shop.manager.host
    assert shop.manager.tier(shop.manager.states["a"]) == "disk"
    assert shop.manager.tier(shop.manager.states["b"]) == "host"
    shop.manager.release(shop.acquire("a"))
    assert shop.num_reads == 4


def test_pinned_adapters_leave_the_host_tier_last(make_shop: MakeShop):
    shop = make_shop(num_pages=1, host_adapters=2)
    shop.manager.pin(shop.source("a"), True)
    for name in "abcd":
        shop.manager.release(shop.acquire(name))
    assert "a" in shop.manager.host and "d" in shop.manager.host
    assert shop.num_reads == 4


def test_waiting_adapters_never_push_each_other_out_of_a_tiny_host_tier(
    make_shop: MakeShop,
):
    """Two adapters, room for none in the host tier and for one in the pool: both get there."""
    shop = make_shop(num_pages=1, host_adapters=0)
    for name in "ab" * 3:
        shop.manager.release(shop.acquire(name))
    assert shop.manager.device.loads == 6


def test_records_of_a_flood_of_unknown_adapters_are_forgotten(make_shop: MakeShop):
    shop = make_shop()
    key = shop.acquire("a")
    for number in range(12_000):
        shop.manager.forget_unused(lambda: {"waiting"})
        shop.manager.register(shop.source("waiting" if number == 5 else f"x{number}"))
    assert len(shop.manager.states) <= 10_000
    assert {"a", "waiting"} <= set(shop.manager.states)
    shop.manager.release(key)

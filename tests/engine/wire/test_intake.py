"""A stop reaches requests that are not with the engine yet, and no others."""

from multilora.wire.intake import EarlyStops


def test_who_is_on_the_way_hears_of_it_once() -> None:
    stops = EarlyStops()
    one, two, other = object(), object(), object()
    for key, name in ((one, "chat"), (two, "chat"), (other, "else")):
        stops.begin(key, name)
    assert not stops.is_stopped(one)
    stops.stop("chat")
    assert [stops.is_stopped(key) for key in (one, two, other)] == [True, True, False]
    assert [stops.end(key) for key in (one, two, other)] == [True, True, False]
    assert not stops.end(one)


def test_who_comes_or_goes_too_soon_is_not_stopped() -> None:
    stops = EarlyStops()
    key = object()
    stops.stop("chat")
    stops.begin(key, "chat")
    assert not stops.end(key)
    stops.stop("chat")
    stops.begin(key, "chat")
    assert not stops.end(key)

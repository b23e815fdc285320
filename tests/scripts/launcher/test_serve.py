"""How the launcher's own process takes signals; tests/e2e/test_serve.py starts real servers."""

import signal
from collections.abc import Iterator

import pytest

from launcher.serve import interrupt_at_signals

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ENDINGS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("first", ENDINGS)
def test_only_the_first_of_several_signals_interrupts(first: signal.Signals) -> None:
    interrupt_at_signals()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(first)
    for number in ENDINGS:
        signal.raise_signal(number)

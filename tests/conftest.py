"""For all tests: Ctrl-C interrupts, and what starts servers stays on one of two workers."""

import signal
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SERVERS = ("browser", "client", "docker", "e2e", "gateway", "scripts/launcher")

# Tests interrupt programs as Ctrl-C does, also where the shell has told us to ignore that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Servers, clients and browsers take turns on one worker, so that none starves another."""
    for item in items:
        if any(item.path.is_relative_to(TESTS / folder) for folder in SERVERS):
            item.add_marker(pytest.mark.xdist_group("servers"))

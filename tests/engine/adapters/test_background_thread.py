"""Threads that yield the processor to the engine thread."""

import os
import sys
import threading

import pytest

from multilora.adapters.background_thread import background_thread


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority per thread")
def test_the_thread_has_a_low_priority_and_its_maker_keeps_its_own():
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before, seen = priority(), []
    thread = background_thread("worker", lambda: seen.append(priority()))
    thread.start()
    thread.join(10)
    assert seen and seen[0] >= 10
    assert priority() == before
    assert (thread.name, thread.daemon) == ("worker", True)

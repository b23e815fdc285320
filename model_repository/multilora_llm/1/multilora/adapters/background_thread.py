"""A thread that reads, merges or watches adapters and yields the processor to the engine thread."""

import contextlib
import os
import threading
from collections.abc import Callable

_NICENESS = 10


def background_thread(name: str, work: Callable[[], None]) -> threading.Thread:
    """A daemon thread, not yet started, that calls `work` at a low priority."""

    def run() -> None:
        yield_processor()
        work()

    return threading.Thread(target=run, name=name, daemon=True)


def yield_processor() -> None:
    """Lower the priority of the calling thread."""
    with contextlib.suppress(OSError, AttributeError):  # only Linux has a priority per thread
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)

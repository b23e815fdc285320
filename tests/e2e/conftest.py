"""One Triton server with the demo for all end-to-end tests."""

from collections.abc import Iterator

import pytest

from e2e_tools import Example, examples, wait_until_idle
from triton_server import TritonServer


@pytest.fixture(scope="session")
def server() -> Iterator[TritonServer]:
    settings = {"MODEL_ID": "", "LORA_ADAPTERS": "", "THREADS": "1", "KV_CACHE_MEMORY": "64MiB"}
    with TritonServer(settings) as server:
        server.wait_ready(timeout=120)
        yield server
        print(*server.log_tail(), sep="\n")  # shown when the next lines fail
        server.check()
        wait_until_idle(server)  # nothing may be left over, whatever the tests did


@pytest.fixture(scope="session")
def demo() -> list[Example]:
    return examples()

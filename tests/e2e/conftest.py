"""One Triton server with the demo for all end-to-end tests."""

from collections.abc import Iterator

import pytest

from e2e_tools import Example, demo_server, examples
from gateway_tools import running_gateway
from triton_server import TritonServer


@pytest.fixture(scope="session")
def server() -> Iterator[TritonServer]:
    with demo_server() as server:
        yield server


@pytest.fixture(scope="session")
def demo() -> list[Example]:
    return examples()


@pytest.fixture(scope="session")
def gateway(server: TritonServer) -> Iterator[str]:
    """The URL of a gateway before `server`; its admin key is ADMIN_KEY."""
    with running_gateway(server) as url:
        yield url

"""One Triton server with the demo for all end-to-end tests."""

from collections.abc import Iterator

import pytest
from openai import OpenAI

from launcher.triton.server import TritonServer
from support.e2e.gateway import running_gateway
from support.e2e.triton import Example, demo_server, examples


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


@pytest.fixture(scope="session")
def openai_client(gateway: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def base(openai_client: OpenAI) -> str:
    """The name of the base model."""
    return openai_client.models.list().data[0].id

from collections.abc import Iterator

import pytest

from fake_triton import FakeTriton


@pytest.fixture
def server() -> Iterator[FakeTriton]:
    server = FakeTriton()
    yield server
    server.close()

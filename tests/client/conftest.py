from collections.abc import Iterator

import pytest

from support.fake.triton import FakeTriton


@pytest.fixture
def server() -> Iterator[FakeTriton]:
    server = FakeTriton()
    yield server
    server.close()

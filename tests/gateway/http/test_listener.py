"""The addresses that the gateway listens on."""

import errno
import socket
import subprocess
import sys

import pytest

from multilora_gateway.http.listener import ListenError, listen, url_of


def reached(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
        return client.connect_ex((address, port)) == 0


@pytest.mark.parametrize(
    ("hostname", "addresses"),
    [
        ("127.0.0.1", {"127.0.0.1"}),
        ("localhost", {"127.0.0.1"}),
        ("0.0.0.0", {"127.0.0.1"}),
        ("::1", {"::1"}),
        ("[::1]", {"::1"}),
        ("::", {"127.0.0.1", "::1"}),
    ],
)
def test_names_and_addresses(hostname: str, addresses: set[str]) -> None:
    with listen(hostname, 0) as listener:
        port = listener.getsockname()[1]
        assert {each for each in ("127.0.0.1", "::1") if reached(each, port)} == addresses


@pytest.mark.parametrize("hostname", ["127.0.0.1", "::1"])
def test_a_taken_port(hostname: str) -> None:
    with listen(hostname, 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"{port} \(--hostname, --port\).*in use; stop what"):
            listen(hostname, port)


@pytest.mark.parametrize("hostname", ["192.0.2.1", "a" * 70, "nosuchhost.invalid"])
def test_an_address_that_is_not_ours(hostname: str) -> None:
    with pytest.raises(ListenError, match=r"cannot be used: .*; let --hostname be .* of this mach"):
        listen(hostname, 0)


def test_a_port_that_one_may_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may take any, and so may all where the kernel says so."""

    def refuse(*_: object, **__: object) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(ListenError, match="Permission denied; choose a port from 1024 on"):
        listen("127.0.0.1", 80)


def test_urls() -> None:
    assert url_of("0.0.0.0", 80) == "http://0.0.0.0:80"
    assert url_of("::", 80) == url_of("[::]", 80) == "http://[::]:80"


@pytest.mark.parametrize(
    ("limits", "wanted", "possible", "files"),
    [
        ((300, 5000), 4096, 4096, 4864),
        ((300, 5000), 0, 4232, 5000),
        ((300, 1000), 4096, 232, 1000),
        ((1000, 1000), 10, 10, 1000),
        ((100, 100), 4096, 1, 100),
    ],
)
def test_files_for_connections(
    limits: tuple[int, int], wanted: int, possible: int, files: int
) -> None:
    """In a process of its own, whose limits may be lowered."""
    program = (
        "import resource as r; from multilora_gateway.http.listener import raise_file_limit; "
        f"r.setrlimit(r.RLIMIT_NOFILE, {limits}); "
        f"print(raise_file_limit({wanted}), r.getrlimit(r.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == [str(possible), str(files)], done.stderr
    assert ("(ulimit -n)" in done.stderr) == (possible < wanted)

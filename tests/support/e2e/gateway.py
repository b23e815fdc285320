"""A gateway process beside a Triton server, for end-to-end tests."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from launcher.triton.server import TritonServer

ADMIN_KEY = "admin-secret"
_END_SECONDS = 15.0


@contextlib.contextmanager
def running_gateway(server: TritonServer, *flags: str, **environment: str) -> Iterator[str]:
    """Its URL. Fails when it does not start, or does not end in order."""
    command = [
        sys.executable, "-m", "multilora_gateway", "--port", "0",
        "--triton-url", server.grpc_address, "--triton-metrics-url", server.metrics_url, *flags,
    ]  # fmt: skip
    variables = {**os.environ, "ADMIN_KEY": ADMIN_KEY, "API_KEY": "", **environment}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("ready: "), f"the gateway said {line!r}"
            yield line.removeprefix("ready: ").strip()
            process.terminate()
            assert process.wait(_END_SECONDS) == 0
        finally:
            process.kill()

"""Start the Triton server with the multi-LoRA models and stay until Ctrl-C.

python scripts/serve.py                                    the embedded demo
python scripts/serve.py --model-id org/base --lora-adapters sql=/adapters/sql,org/adapter
"""

import json
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

import triton_log
from gateway_process import GatewayProcess
from gateway_settings import gateway_environment, gateway_flags, warn_of_useless
from hub_cache_folder import writable_hub_cache
from triton_install import LaunchError
from triton_server import TritonServer
from triton_settings import engine_environment, model_repository, parse_flags, ports

_TAIL_LINES = 30
_START_LINES = 2000
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Screen:
    """What the user sees: one line of progress, then the parts of the log that matter."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._stage = ""
        self._lock = threading.Lock()  # the log arrives on another thread

    def progress(self, seconds: float, stage: str) -> None:
        """Show the stage: in place on a terminal, as a line when it changes elsewhere."""
        with self._lock:
            if sys.stdout.isatty() and not self._verbose:
                print(f"\r\x1b[K{seconds:5.0f} s  {stage[:100]}", end="", flush=True)
            elif stage != self._stage:
                print(f"{seconds:5.0f} s  {stage}", flush=True)
            self._stage = stage

    def log(self, line: str) -> None:
        """Show a line of the server's log if it is wanted."""
        if self._verbose or triton_log.is_warning(line):
            with self._lock:
                print(line, file=sys.stderr, flush=True)

    def ready(
        self, server: TritonServer, gateway: GatewayProcess | None, seconds: float, example: str
    ) -> None:
        """Say what memory is used for, that requests are welcome, and how to send one."""
        clear = "\r\x1b[K" if sys.stdout.isatty() and not self._verbose else ""
        said = [] if self._verbose else triton_log.report(server.log_tail(_START_LINES))
        front = f"gateway {gateway.url}  " if gateway else ""
        report = "".join(f"         {line}\n" for line in said)
        with self._lock:
            print(
                f"{clear}{report}{seconds:5.0f} s  ready: {front}Triton HTTP {server.http_url}  "
                f"gRPC {server.grpc_address}  metrics {server.metrics_url}\n\n{example}\n",
                flush=True,
            )


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 after Ctrl-C or SIGTERM, 1 when the server did not start or died."""
    flags = parse_flags(arguments)
    screen = Screen(flags.log_verbose)
    for number in _ENDINGS:
        signal.signal(number, _interrupt)
    warn_of_useless(flags)
    server: TritonServer | None = None
    gateway: GatewayProcess | None = None
    try:
        environment = engine_environment(flags)
        environment |= writable_hub_cache({**os.environ, **environment})
        server = TritonServer(
            environment,
            ports=ports(flags),
            hostname=flags.triton_hostname or "127.0.0.1",
            model_repository=model_repository(flags),
            on_line=screen.log if flags.log_verbose else None,
        )
        if not flags.no_gateway:
            gateway = GatewayProcess(server, gateway_flags(flags), gateway_environment(flags))
        _serve(server, gateway, screen, environment)
    except KeyboardInterrupt:
        print("\nstopping", flush=True)
        return 0
    except LaunchError as error:
        _report(error, server, flags.log_verbose)
        return 1
    finally:
        for number in _ENDINGS:  # a second Ctrl-C must not leave the server running
            signal.signal(number, signal.SIG_IGN)
        if gateway:
            gateway.stop()
        if server:
            server.stop()


def _serve(
    server: TritonServer,
    gateway: GatewayProcess | None,
    screen: Screen,
    environment: dict[str, str],
) -> NoReturn:
    """Start, wait, then watch; LaunchError or KeyboardInterrupt end it."""
    start = time.monotonic()
    server.start()
    server.wait_ready(progress=screen.progress)
    server.on_line = screen.log
    if gateway:
        gateway.start()
    example = _example(server, gateway, environment)
    screen.ready(server, gateway, time.monotonic() - start, example)
    while True:
        server.check()
        if gateway:
            gateway.check()
        time.sleep(0.5)


def _example(
    server: TritonServer, gateway: GatewayProcess | None, environment: dict[str, str]
) -> str:
    """A curl command that works as pasted."""
    adapters = environment.get("LORA_ADAPTERS", "" if "MODEL_ID" in environment else "upper")
    name = adapters.split(",")[0].partition("=")[0].partition("@")[0]
    adapter = {"adapter_id": name} if name else {}
    if gateway:
        url, kind = f"{gateway.url}/generate_stream", "-H 'Content-Type: application/json' "
        if gateway.needs_key:
            kind += "-H 'Authorization: Bearer KEY' "
        body = {"inputs": "hello world", "parameters": {**adapter, "max_new_tokens": 32}}
    else:
        url, kind = f"{server.http_url}/v2/models/multilora/generate_stream", ""
        body = {"text_input": "hello world", "max_tokens": 32, "stream": True, **adapter}
    return f"curl -N {url} {kind}-d '{json.dumps(body, ensure_ascii=False)}'"


def _report(error: LaunchError, server: TritonServer | None, verbose: bool) -> None:
    if sys.stdout.isatty():
        print()
    if server and not verbose and (tail := server.log_tail(_TAIL_LINES)):
        print("last lines of the server log:", *tail, sep="\n  ", file=sys.stderr)
    print(f"error: {error}", file=sys.stderr, flush=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

"""Start the Triton server with the multi-LoRA models and stay until Ctrl-C.

make serve                                    the embedded demo
make serve ARGS="--model-id org/base --lora-adapters sql=/adapters/sql,org/adapter"
"""

import contextlib
import json
import shlex
import signal
import threading
import time
from types import FrameType
from typing import NoReturn

from launcher.flags import engine_environment, model_repository, open_apis, parse_flags, ports
from launcher.gateway.flags import gateway_environment, gateway_flags, gateway_settings, useless
from launcher.gateway.process import GatewayFailure, GatewayProcess, check_address
from launcher.process import LaunchError, leave_init_behind, stack_warning
from launcher.restart import Restarted
from launcher.screen import Screen
from launcher.triton import end, log
from launcher.triton.ports import exposure
from launcher.triton.server import SettingsRefused, TritonServer
from multilora_api.adapter_names import split_item
from multilora_api.tensors import ENGINE_MODEL

_TAIL_LINES = 30
_START_LINES = 2000
_PATIENCE_SECONDS = 3.0
_LOOK_SECONDS = 0.2
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 after Ctrl-C or SIGTERM, 1 when the server did not start, or died for good."""
    leave_init_behind()
    flags = parse_flags(arguments)
    settings = None if flags.no_gateway else gateway_settings(flags)
    screen = Screen(bool(flags.log_verbose), bool(flags.json_output))
    interrupt_at_signals()
    hostname = flags.triton_hostname or "127.0.0.1"
    for warning in (*useless(flags), *stack_warning(), *exposure(hostname, open_apis(flags))):
        screen.warn(warning)
    server: TritonServer | None = None
    gateway: GatewayProcess | None = None
    try:
        environment = engine_environment(flags)
        server = TritonServer(
            environment,
            ports=ports(flags),
            hostname=hostname,
            open_apis=open_apis(flags),
            model_repository=model_repository(flags),
            on_line=screen.log if flags.log_verbose else None,
        )
        if settings:
            check_address(settings, server.ports)
            gateway = GatewayProcess(server, gateway_flags(flags), gateway_environment(settings))
        _start(server, gateway, screen, environment)
        _watch(server, gateway, screen, restart=not flags.no_restart)
    except KeyboardInterrupt:
        screen.stopping()
        return 0
    except SettingsRefused as error:
        hint = "" if flags.log_verbose else " (--log-verbose shows the whole log)"
        screen.failed(f"{error}{hint}", [])
        return 1
    except LaunchError as error:
        theirs = server if not isinstance(error, GatewayFailure) else None
        screen.failed(str(error), theirs.log_tail(_TAIL_LINES) if theirs else [])
        return 1
    finally:
        with contextlib.suppress(KeyboardInterrupt):  # must not leave the server running
            _ignore_signals()
        _stop(server, gateway, screen)


def interrupt_at_signals() -> None:
    """The first Ctrl-C, SIGTERM or SIGHUP raises KeyboardInterrupt; those behind it do nothing."""
    for number in _ENDINGS:
        signal.signal(number, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in _ENDINGS:
        signal.signal(number, signal.SIG_IGN)


def _stop(server: TritonServer | None, gateway: GatewayProcess | None, screen: Screen) -> None:
    """Stop the gateway first, so that its requests to the server end with it; but after a server
    that is broken, so that its clients are told."""

    def say() -> None:
        screen.waiting(end.waits_for(server.log_tail(_START_LINES) if server else []))

    patience = threading.Timer(_PATIENCE_SECONDS, say)
    patience.start()
    if server and server.is_broken():
        server.stop()
    if gateway:
        gateway.stop()
    if server:
        server.stop()
    patience.cancel()


def _start(
    server: TritonServer,
    gateway: GatewayProcess | None,
    screen: Screen,
    environment: dict[str, str],
) -> None:
    """Returns once all serve; LaunchError or KeyboardInterrupt end it."""
    start = time.monotonic()
    server.start()
    server.wait_ready(progress=screen.progress)
    server.on_line = screen.log
    if gateway:
        gateway.start()
    front = f"gateway {gateway.url}  " if gateway else ""
    screen.ready(
        time.monotonic() - start,
        log.report(server.log_tail(_START_LINES)),
        f"{front}Triton HTTP {server.http_url}  gRPC {server.grpc_address}  "
        f"metrics {server.metrics_url}",
        _example(server, gateway, environment),
    )


def _watch(
    server: TritonServer, gateway: GatewayProcess | None, screen: Screen, restart: bool
) -> NoReturn:
    """Start again what dies; LaunchError or KeyboardInterrupt end it."""

    def tail() -> list[str]:
        return server.log_tail(_TAIL_LINES)

    watched = [Restarted(server, "the server", screen, log_tail=tail, restart=restart)]
    if gateway:
        watched.append(Restarted(gateway, "the gateway", screen, restart=restart))
    while True:
        for each in watched:
            each.look()
        time.sleep(_LOOK_SECONDS)


def _example(
    server: TritonServer, gateway: GatewayProcess | None, environment: dict[str, str]
) -> str:
    """A curl command that works as pasted."""
    adapters = environment.get("LORA_ADAPTERS", "" if "MODEL_ID" in environment else "upper")
    item = split_item(adapters.split(",")[0].strip())
    adapter = {"adapter_id": item[0]} if item else {}
    if gateway:
        url, kind = f"{gateway.url}/generate_stream", "-H 'Content-Type: application/json' "
        if gateway.needs_key:
            kind += "-H 'Authorization: Bearer KEY' "
        body = {"inputs": "hello world", "parameters": {**adapter, "max_new_tokens": 32}}
    else:
        url, kind = f"{server.http_url}/v2/models/{ENGINE_MODEL}/generate_stream", ""
        body = {"text_input": "hello world", "max_tokens": 32, "stream": True, **adapter}
    return f"curl -N {shlex.quote(url)} {kind}-d '{json.dumps(body, ensure_ascii=False)}'"

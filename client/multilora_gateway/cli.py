"""The command line of the gateway: flags and environment variables → Settings → a server.

A flag's variable is its name in upper case with underscores. HOSTNAME is not read: in a container
it is the container's name.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import uvicorn

from multilora_gateway.app import create_app
from multilora_gateway.settings import TOOL_PARSERS, Settings

_NUMBERS = (
    "max_best_of", "max_stop_sequences", "max_top_n_tokens", "max_client_batch_size",
    "payload_limit",
)  # fmt: skip
_TEXTS = {
    "hostname": "address to listen on (127.0.0.1)",
    "triton_url": "gRPC address of the Triton server (localhost:8001)",
    "triton_metrics_url": "where the Triton server shows its metrics",
    "served_model_name": "name of the base model for clients; its id if not given",
    "admin_key": "key for changing adapters; without it nobody may",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM. Exit code 1 when it cannot listen."""
    settings = parse(arguments, os.environ)
    logging.basicConfig(format="%(levelname).1s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    if settings.json_output:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_JsonLines())
    try:
        listener = socket.create_server((settings.hostname, settings.port), backlog=1024)
    except OSError as error:
        print(
            f"error: {settings.hostname}:{settings.port} (--port) cannot be used: "
            f"{error.strerror}; stop what listens there or choose another",
            file=sys.stderr,
        )
        return 1
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        create_app(settings), log_config=None, access_log=False, timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = _Server(config, f"ready: http://{settings.hostname}:{port}")
    server.run(sockets=[listener])
    return 0


def parse(arguments: Sequence[str] | None, environ: Mapping[str, str]) -> Settings:
    """Flags win over variables; exits with a message when something is wrong."""
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="multilora-gateway", allow_abbrev=False,
        description="The APIs of TGI, OpenAI and vLLM for a multi-LoRA Triton server.",
    )  # fmt: skip
    for name, help_ in _TEXTS.items():
        parser.add_argument(_flag(name), help=help_)
    for name in ("port", *_NUMBERS):
        help_ = f"default {getattr(default, name)}"
        parser.add_argument(_flag(name), type=_natural, help=help_)
    parser.add_argument("--tool-call-parser", choices=TOOL_PARSERS)
    parser.add_argument("--api-key", action="append", metavar="KEY[:PATTERN,PATTERN]")
    parser.add_argument("--cors-allow-origin", action="append")
    parser.add_argument("--json-output", action="store_true", default=None)
    flags = vars(parser.parse_args(arguments))
    values: dict[str, object] = {}
    for name in (*_TEXTS, "port", *_NUMBERS, "tool_call_parser"):
        given = flags[name] if name == "hostname" else flags[name] or environ.get(name.upper())
        if flags[name] == 0:
            given = 0
        if given is not None and given != "":
            values[name] = _natural(str(given)) if name in ("port", *_NUMBERS) else str(given)
    values["api_keys"] = tuple(flags["api_key"] or environ.get("API_KEY", "").split())
    origins = flags["cors_allow_origin"] or environ.get("CORS_ALLOW_ORIGIN", "").split(",")
    values["cors_allow_origin"] = tuple(origin for origin in origins if origin)
    values["json_output"] = bool(flags["json_output"] or environ.get("JSON_OUTPUT"))
    return Settings(**values)  # type: ignore[arg-type]


class _Server(uvicorn.Server):
    """Says when it listens, for whoever started it, and ends a signal's request with code 0."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self._ready, flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again at the end."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname,
            "target": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number; got {text!r}")
    return int(text)

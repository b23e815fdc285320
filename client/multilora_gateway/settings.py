"""The gateway's settings: flags and environment variables → Settings.

A flag wins over its variable. Laws: HOSTNAME is not read, for in a container that variable holds
the container's name. Only the standard library is imported, because the launcher reads the same
flags without the packages that the gateway runs on.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from multilora_gateway.api_keys import read_keys

_PARSERS = {  # vLLM's names, for the families of models that are served
    "tool_call_parser": ("hermes", "llama3_json", "mistral"),
    "reasoning_parser": ("deepseek_r1", "mistral", "qwen3"),
}
_READ = {"tool_call_parser": "tool calls", "reasoning_parser": "thoughts"}
_NUMBERS = {
    "max_best_of": "most sequences of one request with best_of",
    "max_stop_sequences": "most stop strings of one request",
    "max_top_n_tokens": "most alternatives reported for each token",
    "payload_limit": "most bytes of a request's body",
    "max_connections": "most open connections, 0 for no limit",
    "max_connections_per_client": "most of them from one address (from one /64 of IPv6), 0 for no "
    "limit; the clients of a proxy share its address",
}
_TEXTS = {
    "hostname": "address to listen on (127.0.0.1)",
    "triton_url": "gRPC address of the Triton server (localhost:8001)",
    "triton_metrics_url": "where the Triton server shows its metrics",
    "served_model_name": "name of the base model for clients; its id if not given",
    "allowed_hosts": "names by which requests may call the server in Host, separated by commas: "
    "*.example.com matches many, * any; default any, but without API keys on a loopback address "
    "localhost alone",
    "admin_key": "key for changing adapters; without it nobody may",
}
_SWITCHES = {
    "json_output": "log lines are JSON",
    "strict_fields": "refuse fields of requests that nobody here knows; without it they are "
    "ignored, and the answer's header x-ignored-fields names them",
}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Settings:
    """What the gateway is told at its start, checked by `parse_settings`. Sizes are in bytes.

    Each of `api_keys` is KEY or KEY:pattern,pattern; without any key everybody may generate.
    Without `admin_key` nobody may change adapters. The Triton server shows its metrics at
    `triton_metrics_url`.
    """

    hostname: str = "127.0.0.1"
    port: int = 8080
    triton_url: str = "localhost:8001"
    triton_metrics_url: str = ""
    served_model_name: str = ""
    api_keys: tuple[str, ...] = ()
    admin_key: str = ""
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    payload_limit: int = 2_000_000
    max_connections: int = 4096
    max_connections_per_client: int = 1024
    allowed_hosts: tuple[str, ...] = ()
    cors_allow_origin: tuple[str, ...] = ()
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    json_output: bool = False
    strict_fields: bool = False


def parse_settings(
    arguments: Sequence[str] | None, environ: Mapping[str, str], prog: str = "multilora-gateway"
) -> Settings:
    """The settings of a command line; `arguments` None is sys.argv. Exits with a message when
    something is wrong."""
    parser = argparse.ArgumentParser(
        prog=prog, allow_abbrev=False, usage="%(prog)s [flags]; --help lists them",
        description="The APIs of TGI, OpenAI, Anthropic and vLLM for a multi-LoRA Triton server.",
        epilog="Each flag but --hostname has an environment variable: --max-best-of is "
        "MAX_BEST_OF, and so on.",
    )  # fmt: skip
    actions = _add_flags(parser)
    flags = parser.parse_args(arguments)
    if flags.admin_key is not None and not flags.admin_key.strip():
        parser.error("--admin-key is empty; give the key, or leave the flag out: then nobody "
                     "may change adapters")  # fmt: skip
    for name in _TEXTS:
        setattr(flags, name, getattr(flags, name) or None)
    read_variables(parser, flags, actions, environ)
    try:
        keys = read_keys(flags.api_key, environ.get("API_KEY", ""))
    except ValueError as error:
        parser.error(str(error))
    origins = flags.cors_allow_origin or environ.get("CORS_ALLOW_ORIGIN", "").split(",")
    given = {name: value for name, value in vars(flags).items() if value is not None}
    given |= {
        "admin_key": (flags.admin_key or "").strip(),
        "allowed_hosts": _words((flags.allowed_hosts or "").lower().split(",")),
        "cors_allow_origin": _words(origins),
        "api_keys": keys,
    }
    given.pop("api_key", None)
    return Settings(**given)


def read_variables(
    parser: argparse.ArgumentParser,
    flags: argparse.Namespace,
    actions: Iterable[argparse.Action],
    environ: Mapping[str, str],
) -> None:
    """Set each flag of `actions` that is None from its environment variable: --max-best-of is
    MAX_BEST_OF, and each name of a flag has a variable.

    Two kinds of variables count as absent: empty ones, and those that Kubernetes makes of a
    service's name (METRICS_PORT=tcp://…). Exits with a message that names the variable.
    """
    for action in actions:
        if getattr(flags, action.dest) is not None:
            continue
        names = [_variable(option) for option in action.option_strings if option.startswith("--")]
        values = {name: environ.get(name, "") for name in names}
        if name := next((n for n in names if values[n] and not _is_service(values[n])), None):
            try:
                value = _value(action, environ[name])
            except (argparse.ArgumentTypeError, ValueError) as error:
                parser.error(f"variable {name}: {error}")
            setattr(flags, action.dest, value)


def natural(text: str) -> int:
    """The type of a flag that takes a whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number; got {text!r}")
    return int(text)


def port(text: str) -> int:
    """The type of a flag that takes a port; 0 is any free port."""
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port number from 0 to 65535; got {text!r}")
    return int(text)


def _add_flags(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Adds every flag; returns the flags whose variable holds their value as it is."""
    default = Settings()
    texts = {name: parser.add_argument(_flag(name), help=help_) for name, help_ in _TEXTS.items()}
    texts.pop("hostname")
    actions = [*texts.values()]
    for name, what in {"port": "port to listen on", **_NUMBERS}.items():
        help_ = f"{what} ({getattr(default, name)})"
        kind = port if name == "port" else natural
        actions.append(parser.add_argument(_flag(name), type=kind, help=help_))
    for name, what in _READ.items():
        help_ = f"how models write {what}; by default auto: as the chat template says"
        choices = ("auto", *_PARSERS[name], "none")
        actions.append(parser.add_argument(_flag(name), choices=choices, help=help_))
    for name, what in _SWITCHES.items():
        actions.append(
            parser.add_argument(_flag(name), action="store_true", default=None, help=what)
        )
    parser.add_argument("--api-key", action="append", metavar="KEY[:PATTERN,PATTERN]")
    parser.add_argument("--cors-allow-origin", action="append")
    return actions


def _words(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(text.strip() for text in texts if text.strip())


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(option: str) -> str:
    return option.removeprefix("--").upper().replace("-", "_")


def _is_service(text: str) -> bool:
    return text.startswith(("tcp://", "udp://", "sctp://"))


def _value(action: argparse.Action, text: str) -> object:
    if action.nargs == 0:
        if text.lower() not in _BOOLEANS:
            raise ValueError(f"must be true, 1, false or 0; got {text!r}")
        return _BOOLEANS[text.lower()]
    try:
        value = action.type(text) if callable(action.type) else text
    except ValueError:
        kind = getattr(action.type, "__name__", "")
        raise ValueError(f"invalid {kind} value: {text!r}") from None
    if action.choices is not None and value not in action.choices:
        raise ValueError(f"must be one of {', '.join(action.choices)}; got {text!r}")
    return value

"""Flags of the launcher that are the gateway's, and TGI's flags that mean nothing here."""

import argparse
import os
from collections.abc import Mapping

from multilora_gateway.settings import Settings, parse_settings

# The launcher hands these flags on as they are; the gateway itself reads their variables.
_PASSED = {
    "hostname": "address the gateway listens on (127.0.0.1)",
    "port": "port of the gateway (8080); 0 is any free port",
    "served-model-name": "name of the base model for clients",
    "max-best-of": "most sequences of one request with best_of (2)",
    "max-stop-sequences": "most stop strings of one request (4)",
    "max-top-n-tokens": "most alternatives reported for each token (5)",
    "payload-limit": "most bytes of a request (2000000)",
    "max-connections": "most open connections of the gateway, 0 for no limit (4096)",
    "max-connections-per-client": "most of them from one address (from one /64 of IPv6), 0 for no "
    "limit; the clients of a proxy share its address (1024)",
    "allowed-hosts": "names by which requests may call the gateway in Host, separated by commas, * "
    "for any; by default any, but without API keys on a loopback address localhost alone",
    "tool-call-parser": "how models write tool calls: hermes, llama3_json, mistral, none (calls "
    "stay text), or auto, which the chat template tells (auto)",
    "reasoning-parser": "how models write thoughts: deepseek_r1, mistral, qwen3, none (thoughts "
    "stay text), or auto, which the chat template tells (auto)",
}
_SHORT = {"port": ["-p"]}
_MANY = {  # flags that may be repeated; the variable of one holds several values
    "api-key": "key for requests, KEY or KEY:adapter-pattern,…; several times for several keys, "
    "which have a line each in API_KEY",
    "cors-allow-origin": "origin that browsers may call from; several times for several",
}
# Flags of TGI's launcher without a meaning here, with (1) or without (0) a value.
_WITHOUT_MEANING = {
    "validation-workers": 1, "sharded": 1, "num-shard": 1, "speculate": 1,
    "kv-cache-dtype": 1, "trust-remote-code": 0, "max-waiting-tokens": 1,
    "waiting-served-ratio": 1, "max-batch-total-tokens": 1, "max-batch-size": 1,
    "shard-uds-path": 1, "master-addr": 1, "master-port": 1, "weights-cache-override": 1,
    "disable-custom-kernels": 0, "rope-scaling": 1, "rope-factor": 1, "otlp-endpoint": 1,
    "otlp-service-name": 1, "watermark-gamma": 1, "watermark-delta": 1, "ngrok": 0,
    "ngrok-authtoken": 1, "ngrok-edge": 1, "tokenizer-config-path": 1,
    "disable-grammar-support": 0, "env": 0, "max-token-penalty": 1, "usage-stats": 1,
    "disable-usage-stats": 0, "graceful-termination-timeout": 1, "prometheus-port": 1,
    "enable-prefill-logprobs": 0, "max-image-size": 1, "max-client-batch-size": 1,
}  # fmt: skip
_OTHERS_TOO = {  # variables of these names are also set by other programs, or by Kubernetes
    "env", "master-addr", "master-port", "ngrok", "ngrok-authtoken", "ngrok-edge",
    "prometheus-port",
}  # fmt: skip


def add_gateway_flags(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Add the gateway's flags and those that are accepted without effect.

    Returns the actions whose variables the launcher reads.
    """
    group = parser.add_argument_group("gateway", "The APIs of TGI, OpenAI and Anthropic over HTTP.")
    off = group.add_argument(
        "--no-gateway", action="store_true", default=None, help="Triton's own ports alone"
    )
    for name, help_ in _PASSED.items():
        group.add_argument(*_SHORT.get(name, []), f"--{name}", help=help_)
    for name, help_ in _MANY.items():
        group.add_argument(f"--{name}", action="append", help=help_)
    group.add_argument("--admin-key", help="key for changing adapters; without it nobody may, "
                       "but over Triton's ports whoever reaches these")  # fmt: skip
    group.add_argument("--strict-fields", action="store_true", default=None,
                       help="refuse fields of requests that nobody here knows")  # fmt: skip
    json_output = group.add_argument(
        "--json-output", action="store_true", default=None, help="log lines are JSON"
    )
    for name, values in _WITHOUT_MEANING.items():
        if values:
            parser.add_argument(f"--{name}", nargs="?", const="", help=argparse.SUPPRESS)
        else:
            parser.add_argument(f"--{name}", action="store_const", const="", help=argparse.SUPPRESS)
    return [off, json_output]


def useless(flags: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> list[str]:
    """What to say of the flags and variables that were given and change nothing."""
    given: list[str] = []
    for name in _WITHOUT_MEANING:
        attribute = name.replace("-", "_")
        if getattr(flags, attribute) is not None:
            given.append(f"--{name}")
        if name not in _OTHERS_TOO and environ.get(attribute.upper()):
            given.append(attribute.upper())
    return [f"{name} has no effect here; leave it out" for name in given]


def gateway_settings(
    flags: argparse.Namespace, environ: Mapping[str, str] = os.environ
) -> Settings:
    """The settings as the gateway will read them; exits with a message when one is wrong."""
    keys = [f"--api-key={key}" for key in flags.api_key or ()]
    if flags.admin_key is not None:
        keys.append(f"--admin-key={flags.admin_key}")
    return parse_settings([*gateway_flags(flags), *keys], environ, prog="serve.py")


def gateway_flags(flags: argparse.Namespace) -> list[str]:
    """The gateway's command line without its keys."""
    given = {name: getattr(flags, name.replace("-", "_")) for name in _PASSED}
    passed = [f"--{name}={value}" for name, value in given.items() if value is not None]
    passed += [f"--cors-allow-origin={origin}" for origin in flags.cors_allow_origin or ()]
    passed += ["--strict-fields"] if flags.strict_fields else []
    return passed + (["--json-output"] if flags.json_output else [])


def gateway_environment(settings: Settings) -> dict[str, str]:
    """The gateway's keys, as variables: a list of processes does not show those."""
    return {"API_KEY": "\n".join(settings.api_keys), "ADMIN_KEY": settings.admin_key}

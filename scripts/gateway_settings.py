"""Flags of the launcher that are the gateway's, and TGI's flags that mean nothing here."""

import argparse
import os
import sys
from collections.abc import Mapping

# Handed to the gateway as they are.
_PASSED = {
    "hostname": "address the gateway listens on (127.0.0.1)",
    "port": "port of the gateway (8080); 0 is any free port",
    "served-model-name": "name of the base model for clients",
    "max-best-of": "most sequences of one request with best_of (2)",
    "max-stop-sequences": "most stop strings of one request (4)",
    "max-top-n-tokens": "most alternatives reported for each token (5)",
    "max-client-batch-size": "most prompts of one request (4)",
    "payload-limit": "most bytes of a request (2000000)",
    "tool-call-parser": "auto, hermes or llama3",
}
_MANY = {  # flag → its environment variable, which holds several
    "api-key": "key for requests, KEY or KEY:adapter-pattern,…; several times for several keys",
    "cors-allow-origin": "origin that browsers may call from; several times for several",
}
# Flags of TGI's launcher without a meaning here, with (1) or without (0) a value.
_WITHOUT_MEANING = {
    "validation-workers": 1, "sharded": 1, "num-shard": 1, "quantize": 1, "speculate": 1,
    "kv-cache-dtype": 1, "trust-remote-code": 0, "max-waiting-tokens": 1,
    "waiting-served-ratio": 1, "max-batch-total-tokens": 1, "max-batch-size": 1,
    "shard-uds-path": 1, "master-addr": 1, "master-port": 1, "weights-cache-override": 1,
    "disable-custom-kernels": 0, "rope-scaling": 1, "rope-factor": 1, "otlp-endpoint": 1,
    "otlp-service-name": 1, "watermark-gamma": 1, "watermark-delta": 1, "ngrok": 0,
    "ngrok-authtoken": 1, "ngrok-edge": 1, "tokenizer-config-path": 1,
    "disable-grammar-support": 0, "env": 0, "max-token-penalty": 1, "usage-stats": 1,
    "disable-usage-stats": 0, "graceful-termination-timeout": 1, "prometheus-port": 1,
    "enable-prefill-logprobs": 0, "max-image-size": 1,
}  # fmt: skip


def add_gateway_flags(parser: argparse.ArgumentParser) -> None:
    """Those of the gateway, and those that are only accepted."""
    group = parser.add_argument_group("gateway", "The APIs of TGI and OpenAI over HTTP.")
    group.add_argument("--no-gateway", action="store_true", help="Triton's own ports alone")
    for name, help_ in _PASSED.items():
        group.add_argument(f"--{name}", help=help_)
    for name, help_ in _MANY.items():
        group.add_argument(f"--{name}", action="append", help=help_)
    group.add_argument("--admin-key", help="key for changing adapters; without it nobody may")
    group.add_argument("--json-output", action="store_true", help="log lines are JSON")
    for name, values in _WITHOUT_MEANING.items():
        if values:
            parser.add_argument(f"--{name}", nargs="?", const="", help=argparse.SUPPRESS)
        else:
            parser.add_argument(f"--{name}", action="store_const", const="", help=argparse.SUPPRESS)


def warn_of_useless(flags: argparse.Namespace) -> None:
    """One line for each flag that was given and changes nothing."""
    for name in _WITHOUT_MEANING:
        if getattr(flags, name.replace("-", "_")) is not None:
            print(f"warning: --{name} has no effect here; leave it out", file=sys.stderr)


def gateway_flags(flags: argparse.Namespace) -> list[str]:
    """The gateway's command line, but for its keys."""
    given = {name: getattr(flags, name.replace("-", "_")) for name in _PASSED}
    passed = [f"--{name}={value}" for name, value in given.items() if value is not None]
    passed += [f"--cors-allow-origin={origin}" for origin in flags.cors_allow_origin or ()]
    return passed + (["--json-output"] if flags.json_output else [])


def gateway_environment(
    flags: argparse.Namespace, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The keys, which nobody should see in a list of processes."""
    keys = flags.api_key or environ.get("API_KEY", "").split()
    return {
        "API_KEY": " ".join(keys),
        "ADMIN_KEY": flags.admin_key or environ.get("ADMIN_KEY", ""),
    }

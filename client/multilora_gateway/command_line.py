"""The gateway's command line: flags and environment variables → Settings.

HOSTNAME is not read: in a container it is the container's name.
"""

import argparse
from collections.abc import Mapping, Sequence

from multilora_gateway.api_keys import read_keys
from multilora_gateway.settings import TOOL_PARSERS, Settings
from multilora_gateway.variables import natural, port, read_variables

_NUMBERS = ("max_best_of", "max_stop_sequences", "max_top_n_tokens", "payload_limit")
_TEXTS = {
    "hostname": "address to listen on (127.0.0.1)",
    "triton_url": "gRPC address of the Triton server (localhost:8001)",
    "triton_metrics_url": "where the Triton server shows its metrics",
    "served_model_name": "name of the base model for clients; its id if not given",
    "admin_key": "key for changing adapters; without it nobody may",
}


def parse(
    arguments: Sequence[str] | None, environ: Mapping[str, str], prog: str = "multilora-gateway"
) -> Settings:
    """Flags win over variables; exits with a message when something is wrong. None is sys.argv."""
    parser = argparse.ArgumentParser(
        prog=prog, allow_abbrev=False, usage="%(prog)s [flags]; --help lists them",
        description="The APIs of TGI, OpenAI and vLLM for a multi-LoRA Triton server.",
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
        "cors_allow_origin": tuple(origin.strip() for origin in origins if origin.strip()),
        "api_keys": keys,
    }
    given.pop("api_key", None)
    return Settings(**given)


def _add_flags(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Those that their variable sets as it is."""
    default = Settings()
    texts = {name: parser.add_argument(_flag(name), help=help_) for name, help_ in _TEXTS.items()}
    texts.pop("hostname")
    actions = [*texts.values()]
    for name in ("port", *_NUMBERS):
        help_ = f"default {getattr(default, name)}"
        kind = port if name == "port" else natural
        actions.append(parser.add_argument(_flag(name), type=kind, help=help_))
    actions.append(parser.add_argument("--tool-call-parser", choices=TOOL_PARSERS))
    actions.append(parser.add_argument("--json-output", action="store_true", default=None))
    parser.add_argument("--api-key", action="append", metavar="KEY[:PATTERN,PATTERN]")
    parser.add_argument("--cors-allow-origin", action="append")
    return actions


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

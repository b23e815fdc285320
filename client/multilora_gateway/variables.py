"""Environment variables of flags: --max-best-of is MAX_BEST_OF, and so are all names of a flag."""

import argparse
from collections.abc import Iterable, Mapping

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def read_variables(
    parser: argparse.ArgumentParser,
    flags: argparse.Namespace,
    actions: Iterable[argparse.Action],
    environ: Mapping[str, str],
) -> None:
    """Fill in those of `actions` that were not given, and so are None. A variable that is empty is
    not there, nor is one that Kubernetes has made of a service's name (METRICS_PORT=tcp://…).
    Exits with a message that names the variable."""
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
    """The type of a flag."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number; got {text!r}")
    return int(text)


def port(text: str) -> int:
    """The type of a flag; 0 is any free port."""
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port number from 0 to 65535; got {text!r}")
    return int(text)


def _is_service(text: str) -> bool:
    return text.startswith(("tcp://", "udp://", "sctp://"))


def _variable(option: str) -> str:
    return option.removeprefix("--").upper().replace("-", "_")


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

"""The command `multilora adapters`: shows and changes the adapters of a running server."""

import argparse
import fnmatch
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from multilora_api.admin import SIGN_METHODS, STRATEGIES
from multilora_client.adapters.convert import convert
from multilora_client.adapters.messages import (
    AdapterInfo,
    Unloaded,
    adapter_infos,
    adapter_memory,
    merge_text,
)
from multilora_client.adapters.table import adapter_text, adapters_table, printable, size_text
from multilora_client.client import MultiLoRAClient

_HELP = {
    "list": "a table of all adapters and their memory",
    "info": "everything about one adapter",
    "load": "bring one into memory, again if its files have changed",
    "unload": "free its memory once the requests that use it have ended",
    "pin": "keep it in memory, loading it if need be",
    "unpin": "let it give way to others",
    "merge": "make one adapter of several, each with its weight",
}


def add_actions(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Give `parser` its actions, each with the flags of `common`."""
    actions = parser.add_subparsers(dest="action", required=True, parser_class=type(parser))
    for name, help_ in _HELP.items():
        action = actions.add_parser(name, help=help_, parents=[common])
        action.add_argument("--json", action="store_true", help="print the server's answer itself")
        if name in ("load", "merge"):
            action.add_argument("--adapter-token", default="", help="opens private Hub ids")
        if name == "list":
            action.add_argument(
                "--filter",
                default="*",
                metavar="PATTERN",
                help="ids like acme/*; without * ? [ ] a part of the id",
            )
            continue
        if name == "merge":
            _add_merge(action)
            continue
        action.add_argument("id", metavar="ID", help="what requests call it")
        if name == "load":
            action.add_argument(
                "source",
                nargs="?",
                default="",
                metavar="SOURCE",
                help="folder on the server, Hub id or URL; left out: where the server knows it",
            )
            action.add_argument("--revision", default="", help="of a Hub id")
        elif name == "unload":
            action.add_argument("--cancel", action="store_true", help="end what runs with it")
    action = actions.add_parser("convert", help="make safetensors of an adapter_model.bin here")
    action.add_argument("folder", type=Path, metavar="FOLDER", help="of this machine")


def _add_merge(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "parts", nargs="+", action=_MergeParts, metavar="ID=WEIGHT", help="without a weight: 1"
    )
    action.add_argument("--strategy", default="", help=", ".join(STRATEGIES))
    action.add_argument("--density", type=float, help="the part of the values that pruning leaves")
    action.add_argument("--majority-sign-method", default="", help=" or ".join(SIGN_METHODS))


class _MergeParts(argparse.Action):
    """`parts`: adapter id → weight."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        parts: dict[str, float] = {}
        for text in values:
            name, equals, weight = text.rpartition("=")
            name, weight = (name, weight) if equals else (text, "1")
            if name in parts:
                parser.error(f"{name} is given twice; add its weights up")
            try:
                parts[name] = float(weight)
            except ValueError:
                parser.error(f"{text}: the weight is no number; write {name}=0.5")
        namespace.parts = parts


def run_convert(args: argparse.Namespace) -> int:
    """Carry out `convert`, for which no server is asked."""
    print(f"{convert(args.folder)}: written")
    return 0


def run_adapters(client: MultiLoRAClient, args: argparse.Namespace) -> int:
    """Carry out the action of the command line → the exit code."""
    inputs: dict[str, Any] = {
        name: getattr(args, name, None)
        for name in ("source", "revision", "cancel", "adapter_token")
    }
    if args.action == "merge":
        inputs["merge"] = merge_text(
            args.parts, args.strategy, args.density, args.majority_sign_method
        )
    if args.action == "list":
        values = _filtered(client.adapters.listed(), args.filter)
    else:
        values = client.adapters.ask(args.action, adapter_id=getattr(args, "id", None), **inputs)
    text = json.dumps(values, indent=2) if args.json else _text(args.action, values)
    print(text)
    return 0


def _text(action: str, values: dict[str, Any]) -> str:
    now = time.time()
    if action == "list":
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        return adapters_table(adapter_infos(values), adapter_memory(values), now, width)
    if action == "unload":
        return _unloaded_text(Unloaded.from_json(values))
    info = AdapterInfo.from_json(values)
    return adapter_text(info, now) if action == "info" else _changed_text(action, info)


def _changed_text(action: str, info: AdapterInfo) -> str:
    done = {"load": "loaded", "pin": "pinned", "unpin": "no longer pinned", "merge": "merged"}[
        action
    ]
    facts = [f"tier {info.tier}"]
    if info.rank is not None:
        facts.append(f"rank {info.rank}")
    if info.bytes is not None:
        facts.append(size_text(info.bytes))
    return f"{printable(info.id)}: {done} ({', '.join(facts)})"


def _unloaded_text(unloaded: Unloaded) -> str:
    pages = f"{unloaded.freed_pages} device page{'' if unloaded.freed_pages == 1 else 's'}"
    host = f"{size_text(unloaded.freed_bytes)} of host memory"
    return f"{printable(unloaded.id)}: unloaded, freed {pages} and {host}"


def _filtered(values: dict[str, Any], pattern: str) -> dict[str, Any]:
    """The answer to `list` with only the adapters whose id matches."""
    if not any(c in pattern for c in "*?["):
        pattern = f"*{pattern}*"
    adapters = [
        entry
        for entry in values.get("adapters", [])
        if fnmatch.fnmatchcase(str(entry.get("id")), pattern)
    ]
    return {**values, "adapters": adapters}

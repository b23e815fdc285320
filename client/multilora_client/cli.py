"""The command `multilora`: generate text or chat with any adapter of a server; administer them.

Answers go to stdout, everything else to stderr. Exit codes: 0, 1 the request failed, 2 the command
line is wrong, 130 interrupted (the request is cancelled).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, cast

from multilora_client.adapters.cli import add_actions, run_adapters, run_convert
from multilora_client.client import MultiLoRAClient
from multilora_client.errors import MultiLoRAError
from multilora_client.protocol import ARGUMENTS, Message
from multilora_client.sampling import Sampling

_PARSERS = {"INT32": int, "UINT64": int, "FP32": float, "BYTES": str}
_FLAGS = {"stop_words": "--stop"}  # names of their own
_CHAT_MAX_TOKENS = 256  # the server's 16 is too short for a conversation


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        if args.command == "adapters" and args.action == "convert":
            return run_convert(args)
        admin_key = os.environ.get("ADMIN_KEY", "")  # a flag would show it to the whole machine
        with MultiLoRAClient(args.url, timeout=args.timeout, admin_key=admin_key) as client:
            commands = {"generate": _generate, "chat": _chat, "adapters": run_adapters}
            return commands[args.command](client, args)
    except MultiLoRAError as error:
        return _report(error)
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


def _generate(client: MultiLoRAClient, args: argparse.Namespace) -> int:
    prompt = _prompt(args)
    if args.stream:
        _print_stream(client, prompt, args)
    else:
        print(client.generate(prompt, adapter_id=args.adapter, **_sampling(args)).text)
    return 0


def _chat(client: MultiLoRAClient, args: argparse.Namespace) -> int:
    messages: list[Message] = []
    if args.system:
        messages.append({"role": "system", "content": args.system})
    if args.prompt is not None or not sys.stdin.isatty():
        messages.append({"role": "user", "content": _prompt(args)})
        _print_stream(client, messages, args)
        return 0
    print(f"Chat with {args.adapter or 'the base model'}; Ctrl-D ends it.", file=sys.stderr)
    while True:
        try:
            said = input("> ")
        except EOFError:
            print(file=sys.stderr)
            return 0
        if not said.strip():
            continue
        messages.append({"role": "user", "content": said})
        try:
            answer = _print_stream(client, messages, args)
            messages.append({"role": "assistant", "content": answer})
        except MultiLoRAError as error:  # let the user put it differently
            _report(error)
            messages.pop()


def _print_stream(
    client: MultiLoRAClient, prompt: str | list[Message], args: argparse.Namespace
) -> str:
    with client.stream(prompt, adapter_id=args.adapter, **_sampling(args)) as stream:
        for piece in stream:
            print(piece, end="", flush=True)
        print(flush=True)
        return stream.result.text


def _prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        return args.prompt
    if sys.stdin.isatty():
        raise SystemExit(_usage("give a prompt, or pipe one in"))
    # Like $(…) in a shell: the last line end is echo's, not the prompt's.
    return sys.stdin.read().removesuffix("\n")


def _sampling(args: argparse.Namespace) -> Sampling:
    given = {name: getattr(args, name) for name, _, _ in ARGUMENTS}
    return cast(Sampling, {name: value for name, value in given.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="multilora", description="Generate text with any LoRA adapter.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    server = _server_flags()
    generate = commands.add_parser("generate", help="continue a text", parents=[server])
    generate.add_argument("--stream", action="store_true", help="print as it is generated")
    _add_common(generate)
    chat = commands.add_parser(
        "chat", help="talk; without a prompt, turn by turn", parents=[server]
    )
    chat.add_argument("--system", help="the system message")
    _add_common(chat)
    chat.set_defaults(max_tokens=_CHAT_MAX_TOKENS)
    add_actions(
        commands.add_parser("adapters", help="list, load, unload, pin, merge, convert adapters"),
        server,
    )
    return parser


def _server_flags() -> _Parser:
    """The flags of every command: which server, and how long to wait for it."""
    flags = _Parser(add_help=False)
    flags.add_argument(
        "--url",
        default=os.environ.get("MULTILORA_URL") or "localhost:8001",
        help="gRPC address (environment: MULTILORA_URL; now %(default)s)",
    )
    flags.add_argument("--timeout", type=float, metavar="SECONDS", help="left out: no limit")
    return flags


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="left out: read from stdin when it is piped")
    parser.add_argument("--adapter", default="", metavar="ID", help="left out: the base model")
    sampling = parser.add_argument_group("sampling (left out: the server's defaults)")
    for name, datatype, many in ARGUMENTS:
        flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
        if datatype == "BOOL":
            sampling.add_argument(flag, action="store_true", default=None)
        elif many:
            sampling.add_argument(
                flag, action="append", dest=name, metavar="TEXT", help="repeatable"
            )
        else:
            sampling.add_argument(flag, type=_PARSERS[datatype], metavar=datatype)


def _report(error: MultiLoRAError) -> int:
    print(f"multilora: {' '.join(error.message.split())}", file=sys.stderr)
    return 1


def _usage(message: str) -> int:
    print(f"multilora: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

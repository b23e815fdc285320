"""The patterns of an adapter_config.json: regular expressions of whoever made the adapter.

Matching may take for ever, and lets no other thread run meanwhile. So this module is also a
program, which matches in a process of its own: see worker.serve.
"""

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from multilora.adapters.files import CONFIG_FILE
from multilora.errors import internal, invalid
from multilora_sandbox.pool import Broken, ProcessPool
from multilora_sandbox.worker import serve

_PROGRAM = "multilora.adapters.checkpoint.patterns"
_MOST_SECONDS = 2.0  # of a core, for all patterns of an adapter
_MOST_BYTES = 256 << 20  # of address space, beside the program's own
_WALL_SECONDS = 60.0  # enough on a busy machine for the processor time that the process allows


def first_matches(
    patterns: Mapping[str, Sequence[str]], modules: Sequence[str]
) -> dict[str, list[str | None]]:
    """The first key of each pattern that matches each module, by PEFT's rule.

    RequestError(INVALID_ARG) when a key is no regular expression, or they take too long.
    """
    if not any(patterns.values()):
        return {name: [None] * len(modules) for name in patterns}
    question = json.dumps([patterns, modules]).encode()
    try:
        with closing(ProcessPool(_PROGRAM)) as pool:
            answer = pool.ask(question, _WALL_SECONDS)
    except Broken:
        raise invalid(
            f"{CONFIG_FILE}: the keys of {' and '.join(patterns)} take too long to match; write "
            "out the module names"
        ) from None
    except OSError as error:
        raise internal(f"{CONFIG_FILE}: its patterns cannot be matched here ({error})") from None
    if isinstance(answer, str):
        raise invalid(f"{CONFIG_FILE}: {answer}; fix it")
    return answer


def _answer(question: bytes) -> dict[str, list[str | None]] | str:
    """As `first_matches`; a text says which key is no regular expression."""
    patterns, modules = json.loads(question)
    found: dict[str, list[str | None]] = {}
    for name, keys in patterns.items():
        matches: list[tuple[str, Callable[[str], Any]]] = []
        for key in keys:
            try:
                re.compile(key)
                # PEFT's rule: a key is the name of a module, or its end after a dot.
                matches.append((key, re.compile(rf"(.*\.)?({key})$").match))
            except (re.error, RecursionError, OverflowError) as error:
                return f"{name} key {key[:100]!r} is not a regular expression ({error})"
        found[name] = [
            next((key for key, match in matches if match(module)), None) for module in modules
        ]
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(lambda _: _answer, _MOST_SECONDS, _MOST_BYTES)

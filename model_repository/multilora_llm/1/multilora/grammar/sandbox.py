"""GrammarSandbox: compiles a grammar in a process of its own first, to see whether it is harmless.

llguidance can neither be stopped nor limited while it compiles: a schema of 1 kB may take hours and
all memory, or crash the process. A grammar that passes here takes as much time and memory once
more in the server's own process, and does no other harm.

This module is also the program of that process: see worker.serve. Its first line is {"tokenizer":
text of tokenizer.json, "vocab_size", "eos_token_ids"}, a question is [kind, text, after] of a
grammar, and the answer is what is wrong, "" when nothing is.
"""

import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from multilora.errors import RequestError, internal, invalid, shutting_down
from multilora.grammar.compiler import GrammarCompiler
from multilora.grammar.threads import STACK_BYTES
from multilora_api.sampling import Grammar
from multilora_sandbox.pool import Broken, PoolClosed, ProcessPool
from multilora_sandbox.worker import serve

_LOG = logging.getLogger(__name__)
_PROGRAM = "multilora.grammar.sandbox"
_MOST_SECONDS = 3.0  # of a core, for one grammar
_MOST_BYTES = 1 << 30  # of address space, beside the tokenizer's
_WALL_SECONDS = 60.0  # enough on a busy machine for the processor time that the process allows


class GrammarSandbox:
    """Any thread. `setup` gives the first line for each process."""

    def __init__(self, setup: Callable[[], Any]) -> None:
        self._pool = ProcessPool(_PROGRAM, setup)

    def check(self, grammar: Grammar) -> None:
        """RequestError (INVALID_ARG) when the grammar cannot be compiled within the limits of the
        process, or not at all."""
        question = json.dumps([grammar.kind, grammar.text, grammar.after]).encode()
        try:
            problem = self._pool.ask(question, _WALL_SECONDS)
        except PoolClosed:
            raise shutting_down() from None
        except Broken:
            raise invalid(
                "grammar: it takes more time or memory to compile than the server allows; "
                "simplify it"
            ) from None
        except OSError as error:
            _LOG.exception("%s does not start", _PROGRAM)
            raise internal(f"grammar: it cannot be compiled here ({error})") from None
        if problem:
            raise invalid(problem)

    def close(self) -> None:
        """Kill the processes, whatever they are doing."""
        self._pool.close()


def _prepare(setup: Any) -> Callable[[bytes], str]:
    compiler = GrammarCompiler(
        lambda: setup["tokenizer"], setup["vocab_size"], tuple(setup["eos_token_ids"])
    )
    compiler.prepare()
    threading.stack_size(STACK_BYTES // 4)  # what fits in here fits on GrammarThreads, too
    thread = ThreadPoolExecutor(1)

    def problem(question: bytes) -> str:
        try:
            thread.submit(compiler.compile, Grammar(*json.loads(question))).result()
        except RequestError as error:
            return error.message
        return ""

    return problem


if __name__ == "__main__":
    serve(_prepare, _MOST_SECONDS, STACK_BYTES + _MOST_BYTES)

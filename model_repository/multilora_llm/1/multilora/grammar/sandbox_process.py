"""The program of a GrammarSandbox, in a process of its own: see worker.serve.

The first line is {"tokenizer": text of tokenizer.json, "vocab_size", "eos_token_ids"}, every other
one [kind, text] of a grammar. The answer to each line is what is wrong, "" when nothing is.
"""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from multilora.errors import RequestError
from multilora.grammar.compiler import GrammarCompiler
from multilora.grammar.threads import STACK_BYTES
from multilora_api.sampling import Grammar
from multilora_sandbox.worker import serve

MOST_SECONDS = 3.0  # of a core, for one grammar
MOST_BYTES = 1 << 30  # of address space, beside the tokenizer's


def main() -> None:
    serve(_prepare, MOST_SECONDS, STACK_BYTES + MOST_BYTES)


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
    main()

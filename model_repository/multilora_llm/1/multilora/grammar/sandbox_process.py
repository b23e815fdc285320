"""The process of a GrammarSandbox: lines of JSON in, lines of JSON out, until the input ends.

The first line is {"tokenizer": text of tokenizer.json, "vocab_size", "eos_token_ids"}, every other
one [kind, text] of a grammar. The answer to each line is what is wrong, "" when nothing is. A
grammar that takes too much time or memory kills the process.
"""

import json
import math
import resource
import sys
import threading

from multilora.errors import RequestError
from multilora.grammar.compiler import GrammarCompiler
from multilora.grammar.threads import STACK_BYTES
from multilora_api.sampling import Grammar

MOST_SECONDS = 3  # of a core, for one grammar
MOST_BYTES = 1 << 30  # of address space, beside the tokenizer's


def main() -> None:
    setup = json.loads(sys.stdin.readline())
    compiler = GrammarCompiler(
        lambda: setup["tokenizer"], setup["vocab_size"], tuple(setup["eos_token_ids"])
    )
    compiler.prepare()
    _limit_memory()
    threading.stack_size(STACK_BYTES // 4)  # what fits in here fits on GrammarThreads, too
    _say("")
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = math.ceil(used.ru_utime + used.ru_stime) + MOST_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        thread = threading.Thread(target=_try, args=(compiler, Grammar(*json.loads(line))))
        thread.start()
        thread.join()


def _try(compiler: GrammarCompiler, grammar: Grammar) -> None:
    try:
        compiler.compile(grammar)
    except RequestError as error:
        _say(error.message)
    else:
        _say("")


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + STACK_BYTES + MOST_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _say(answer: str) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

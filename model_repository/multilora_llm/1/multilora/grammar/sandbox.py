"""GrammarSandbox: compiles a grammar in a process of its own first, to see whether it is harmless.

llguidance can neither be stopped nor limited while it compiles: a schema of 1 kB may take hours and
all memory, or crash the process. A grammar that passes here takes as much time and memory once
more in the server's own process, and does no other harm.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

from multilora.errors import internal, invalid, shutting_down
from multilora_api.sampling import Grammar
from multilora_sandbox.pool import Broken, PoolClosed, ProcessPool

_LOG = logging.getLogger(__name__)
_PROGRAM = "multilora.grammar.sandbox_process"
_WALL_SECONDS = 60.0  # enough on a busy machine for the processor time that the process allows


class GrammarSandbox:
    """Any thread. `setup` gives the first line for each process; see sandbox_process."""

    def __init__(self, setup: Callable[[], Any]) -> None:
        self._pool = ProcessPool(_PROGRAM, setup)

    def check(self, grammar: Grammar) -> None:
        """RequestError (INVALID_ARG) when the grammar cannot be compiled within the limits of the
        process, or not at all."""
        question = json.dumps([grammar.kind, grammar.text]).encode()
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

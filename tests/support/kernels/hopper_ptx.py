"""Reads PTX for Hopper: is a register operand of a wgmma in flight where a loop goes round?

ptxas before 13.3 may reuse the registers of such an operand before the wgmma has read them, so
each one must be waited for before the next branch.
"""

import re

_REGISTER_OPERAND = re.compile(r"wgmma\.mma_async.*\}, \{ ?%r")
_WAIT_FOR_ALL = "wgmma.wait_group.sync.aligned 0;"
_BRANCH = re.compile(r"(@!?%p\d+ )?bra")


def register_operands(ptx: str) -> tuple[int, bool]:
    """How many there are, and whether one is in flight at a branch."""
    count, pending, in_flight = 0, False, False
    for line in map(str.strip, ptx.splitlines()):
        if _REGISTER_OPERAND.match(line):
            count, pending = count + 1, True
        elif line.startswith(_WAIT_FOR_ALL):
            pending = False
        elif _BRANCH.match(line):
            in_flight |= pending
    return count, in_flight

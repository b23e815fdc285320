"""RemoteFile: a file elsewhere that can be read from any position, and how it gets here."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

from multilora.download.partial_file import PartialFile
from multilora.download.transfer import Interrupted, Retries, Transfer
from multilora.errors import ErrorCode, RequestError


class Incoming(NamedTuple):
    """Bytes from position `start` to the end of the file."""

    start: int
    chunks: Iterator[bytes]


@dataclass(frozen=True)
class RemoteFile:
    """`size` in bytes as announced, None when none was.

    `read_from(position)` may answer with Incoming from 0 when the other side does not understand
    positions. `read_from` and the chunks raise Interrupted for what the next attempt may not meet
    again, and RequestError for the rest.
    """

    name: str
    size: int | None
    read_from: Callable[[int], AbstractContextManager[Incoming]]

    def fetch(self, partial: PartialFile, transfer: Transfer) -> None:
        """Go on from what `partial` holds until the file is whole; counted in `transfer`."""
        transfer.count(partial.size)
        if self.size is not None and partial.size > self.size:
            self._restart(partial, transfer)
        retries = Retries(transfer)
        while self.size is None or partial.size < self.size:
            try:
                self._receive(partial, transfer)
                break
            except Interrupted as error:
                retries.wait(error)
            except RequestError as error:
                if error.code is ErrorCode.INVALID_ARG:  # too large: nothing to go on from
                    partial.restart()
                raise
        partial.settle()

    def _receive(self, partial: PartialFile, transfer: Transfer) -> None:
        with self.read_from(partial.size) as (start, chunks):
            if start != partial.size:
                self._restart(partial, transfer)
            for chunk in chunks:
                if self.size is not None and partial.size + len(chunk) > self.size:
                    self._restart(partial, transfer)
                    raise RequestError(
                        ErrorCode.UNAVAILABLE,
                        f"{self.name} is longer than the {self.size} bytes that were announced; "
                        "upload it again, or try again later",
                    )
                transfer.count(len(chunk))
                partial.write(chunk)
        if self.size is not None and partial.size < self.size:
            raise Interrupted(
                f"{self.name} ended after {partial.size} of {self.size} bytes; try again"
            )

    def _restart(self, partial: PartialFile, transfer: Transfer) -> None:
        transfer.count(-partial.size)
        partial.restart()

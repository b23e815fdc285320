"""What the launcher's processes have in common: how they start and stop, and the error of both."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class LaunchError(Exception):
    """A process cannot be started or has died; the message is one line with the remedy."""


class Startable(ABC):
    """What is started at the beginning of a `with` block and stopped at its end."""

    @abstractmethod
    def start(self) -> None:
        """Return once the process serves, or is on its way to; LaunchError when it cannot."""

    @abstractmethod
    def stop(self) -> None:
        """End the process. Safe to call twice."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

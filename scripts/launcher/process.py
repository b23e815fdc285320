"""Startable: what is started at the beginning of a `with` block and stopped at its end."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Startable(ABC):
    @abstractmethod
    def start(self) -> None:
        """Returns once it serves, or is on its way to; raises LaunchError."""

    @abstractmethod
    def stop(self) -> None:
        """Twice is as good as once."""

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

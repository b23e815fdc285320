"""A process of the launcher that is started again when it dies."""

import time
from collections.abc import Callable, Sequence

from launcher.process import LaunchError, Startable
from launcher.screen import Screen

MOST_DEATHS = 5
SERVED_SECONDS = 30.0  # who served for this long has not died before
_LONGEST_PAUSE = 30.0


class Restarted:
    """Watches `process`, which serves already and is called `name`. `log_tail` holds the last lines
    of its log. Without `restart`, the first death is the end."""

    def __init__(
        self,
        process: Startable,
        name: str,
        screen: Screen,
        *,
        log_tail: Callable[[], Sequence[str]] = tuple,
        restart: bool = True,
    ) -> None:
        self._process = process
        self._name = name
        self._screen = screen
        self._log_tail = log_tail
        self._most = MOST_DEATHS if restart else 1
        self._deaths = 0
        self._died = 0.0  # when
        self._due: float | None = None  # when it is started again
        self._served: float | None = time.monotonic()  # since when

    def look(self) -> None:
        """To be called several times a second: start the process again once it is due. Raises
        LaunchError when the process has died too often."""
        try:
            if self._due is not None:
                if time.monotonic() < self._due:
                    return
                self._due = None
                self._process.start()
            if self._process.serves() and self._served is None:
                self._served = time.monotonic()
                self._screen.say(f"{self._name} serves again ({self._served - self._died:.0f} s)")
        except LaunchError as error:
            self._bury(error)

    def _bury(self, error: LaunchError) -> None:
        self._died = time.monotonic()
        if self._served is not None and self._died - self._served >= SERVED_SECONDS:
            self._deaths = 0
        self._served = None
        self._deaths += 1
        if self._deaths < self._most:
            pause = pause_after(self._deaths)
            when = f"in {pause:.0f} s" if pause else "at once"
            self._screen.died(f"{error}; {self._name} starts again {when}", self._log_tail())
            self._process.stop()
            self._due = self._died + pause
        elif self._deaths == 1:
            raise error
        else:
            raise type(error)(
                f"{error}; it died {self._deaths} times and did not serve for "
                f"{SERVED_SECONDS:.0f} s in between"
            ) from error


def pause_after(deaths: int) -> float:
    """Seconds before the next start: 0, 1, 2, 4 and so on."""
    return 0.0 if deaths == 1 else min(2.0 ** (deaths - 2), _LONGEST_PAUSE)

"""How soon, and how often, a process that dies is started again; the processes are real."""

import subprocess
import time

import pytest

from launcher import restart
from launcher.process import LaunchError, Startable
from launcher.restart import MOST_DEATHS, Restarted, pause_after
from launcher.screen import Screen


class Sleeper(Startable):
    """Lives for `seconds` at each start."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.starts = 0

    def start(self) -> None:
        self.starts += 1
        self.process = subprocess.Popen(["sleep", str(self.seconds)])

    def serves(self) -> bool:
        if self.process.poll() is not None:
            raise LaunchError("the sleeper died")
        return True

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def watch(sleeper: Sleeper, most: int, restarts: bool = True) -> None:
    """Until it is given up, or was started `most` times."""
    watched = Restarted(sleeper, "the sleeper", Screen(False, False), restart=restarts)
    while sleeper.starts < most:
        watched.look()
        time.sleep(0.005)


def test_pauses_grow() -> None:
    assert list(map(pause_after, range(1, 5))) == [0, 1, 2, 4]
    assert pause_after(20) == 30


def test_one_that_cannot_live_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(restart, "pause_after", lambda deaths: 0.1 * (deaths == 2))
    with Sleeper(0) as sleeper:
        began = time.monotonic()
        with pytest.raises(LaunchError, match=f"the sleeper died; it died {MOST_DEATHS} times"):
            watch(sleeper, 99)
    assert time.monotonic() - began >= 0.1
    assert sleeper.starts == MOST_DEATHS
    out, err = capsys.readouterr()
    assert err.startswith("warning: the sleeper died; the sleeper starts again at once\n")
    assert "the sleeper serves again" in out


def test_service_makes_good_for_deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "SERVED_SECONDS", 0.01)
    with Sleeper(0.05) as sleeper:
        watch(sleeper, MOST_DEATHS + 3)
    assert sleeper.starts == MOST_DEATHS + 3


def test_without_restarts_the_first_death_is_the_end() -> None:
    with Sleeper(0) as sleeper, pytest.raises(LaunchError, match=r"^the sleeper died$"):
        watch(sleeper, 99, restarts=False)
    assert sleeper.starts == 1

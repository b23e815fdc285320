"""What the launcher says of Triton's ports, and which of their APIs it closes."""

import pytest

from launcher.flags import open_apis, parse_flags
from launcher.triton.ports import CLOSED, exposure, restrictions


def test_an_api_is_closed_unless_it_is_asked_for() -> None:
    assert open_apis(parse_flags([], {})) == ()
    asked = open_apis(parse_flags([], {"TRITON_OPEN_APIS": "trace, logging"}))
    for flag in restrictions(asked):
        assert flag.partition("=")[2].startswith("shared-memory,model-repository:multilora-closed=")
    assert restrictions(CLOSED) == []
    assert restrictions(()) != restrictions(()), "the secret is the same at every start"


def test_an_unknown_api_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_flags(["--triton-open-apis=trace,inference"], {})
    assert "with commas between; got 'inference'" in capsys.readouterr().err


@pytest.mark.parametrize("hostname", ["0.0.0.0", "::", "10.0.0.7", "gpu-3", "[fe80::1]"])
def test_ports_that_others_reach_do_not_go_unnoticed(hostname: str) -> None:
    (warning,) = exposure(hostname, ("trace",))
    assert hostname in warning and "for trace" in warning


@pytest.mark.parametrize("hostname", ["127.0.0.1", "127.0.0.9", "localhost", "::1", "[::1]"])
def test_ports_of_this_machine_are_nothing_to_speak_of(hostname: str) -> None:
    assert exposure(hostname, CLOSED) == []

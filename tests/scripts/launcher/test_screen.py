"""What the launcher shows, as text and with --json-output."""

import json

import pytest

from launcher.screen import Screen

WARNING = "W multilora.engine: careful"


def show(screen: Screen) -> None:
    screen.warn("--ngrok has no effect here")
    screen.progress(1.0, "loading")
    screen.progress(2.0, "loading")
    screen.log("I multilora.engine: not shown")
    screen.log(WARNING)
    screen.ready(3.0, ["GPU memory 80 GiB", "warning: no driver"], "gateway http://x", "curl x")
    screen.failed("it died", ["E multilora.engine: broken"])
    screen.stopping()
    screen.waiting("models to be unloaded")


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    show(Screen(verbose=False, json=False))
    out, err = capsys.readouterr()
    assert out == (
        "    1 s  loading\n"
        "         GPU memory 80 GiB\n"
        "         warning: no driver\n"
        "    3 s  ready: gateway http://x\n"
        "\ncurl x\n\n"
        "\nstopping\n"
        "waiting for models to be unloaded\n"
    )
    assert err.splitlines() == [
        "warning: --ngrok has no effect here",
        WARNING,
        "last lines of the server log:",
        "  E multilora.engine: broken",
        "error: it died",
    ]


def test_every_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    show(Screen(verbose=False, json=True))
    out, err = (list(map(json.loads, text.splitlines())) for text in capsys.readouterr())
    assert [(line["level"], line["fields"]["message"]) for line in out] == [
        ("INFO", "loading"),
        ("INFO", "GPU memory 80 GiB"),
        ("WARN", "no driver"),
        ("INFO", "ready: gateway http://x"),
        ("INFO", "stopping"),
        ("INFO", "waiting for models to be unloaded"),
    ]
    assert [(line["level"], line["target"], line["fields"]["message"]) for line in err] == [
        ("WARN", "multilora.launcher", "--ngrok has no effect here"),
        ("WARN", "tritonserver", WARNING),
        ("ERROR", "tritonserver", "E multilora.engine: broken"),
        ("ERROR", "multilora.launcher", "it died"),
    ]
    assert all(line.keys() == {"timestamp", "level", "fields", "target"} for line in out + err)


def test_the_whole_log_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(verbose=True, json=False)
    screen.log("I multilora.engine: shown")
    screen.failed("it died", ["I multilora.engine: shown"])
    assert capsys.readouterr().err == "I multilora.engine: shown\nerror: it died\n"

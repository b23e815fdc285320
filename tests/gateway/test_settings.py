"""The gateway's flags and their variables → Settings."""

import subprocess
import sys

import pytest

from multilora_gateway.settings import Settings, parse_settings


def complaint(capsys: pytest.CaptureFixture[str], *flags: str, **environ: str) -> str:
    """The last line, after the exit that it explains."""
    with pytest.raises(SystemExit) as caught:
        parse_settings(flags, environ)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix("multilora-gateway: error: ")


def test_nothing_given_is_the_default() -> None:
    names: list[str] = ["PORT", "API_KEY", "ADMIN_KEY", "JSON_OUTPUT", "MAX_BEST_OF"]
    empty = dict.fromkeys(names, "")
    assert parse_settings([], empty) == parse_settings([], {}) == Settings()
    assert parse_settings([], {"HOSTNAME": "4f2a"}).hostname == "127.0.0.1"
    assert parse_settings(["--hostname="], {}).hostname == "127.0.0.1"


def test_a_flag_wins_over_its_variable() -> None:
    environ = {"PORT": "81", "MAX_BEST_OF": "7", "ADMIN_KEY": "root\n", "API_KEY": "one\ntwo:a*"}
    environ |= {"TOOL_CALL_PARSER": "hermes", "CORS_ALLOW_ORIGIN": "https://a, https://b"}
    settings = parse_settings(["--port=0", "--api-key=three"], environ)
    assert (settings.port, settings.max_best_of, settings.admin_key) == (0, 7, "root")
    assert settings.tool_call_parser == "hermes"
    assert settings.cors_allow_origin == ("https://a", "https://b")
    assert settings.api_keys == ("three",)
    assert parse_settings([], environ).api_keys == ("one", "two:a*")


def test_names_of_the_server() -> None:
    environ = {"ALLOWED_HOSTS": "LLM.example, *.llm.example,"}
    assert parse_settings([], environ).allowed_hosts == ("llm.example", "*.llm.example")
    assert parse_settings(["--allowed-hosts=*"], environ).allowed_hosts == ("*",)


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("False", False), ("0", False)]
)  # fmt: skip
def test_a_variable_that_is_true_or_false(text: str, value: bool) -> None:
    assert parse_settings([], {"JSON_OUTPUT": text}).json_output is value
    assert parse_settings(["--json-output"], {"JSON_OUTPUT": text}).json_output


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("MAX_BEST_OF", "abc", "must be a whole number; got 'abc'"),
        ("PORT", "80a", "must be a port number from 0 to 65535; got '80a'"),
        ("PORT", "65536", "must be a port number from 0 to 65535; got '65536'"),
        ("JSON_OUTPUT", "maybe", "must be true, 1, false or 0; got 'maybe'"),
        (
            "TOOL_CALL_PARSER",
            "x",
            "must be one of auto, hermes, llama3_json, mistral, none; got 'x'",
        ),
        (
            "REASONING_PARSER",
            "x",
            "must be one of auto, deepseek_r1, mistral, qwen3, none; got 'x'",
        ),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(
    capsys: pytest.CaptureFixture[str], name: str, text: str, message: str
) -> None:
    assert complaint(capsys, **{name: text}) == f"variable {name}: {message}"


@pytest.mark.parametrize("number", ["65536", "99999999999999999999", "-1", ""])
def test_a_port_that_is_none(capsys: pytest.CaptureFixture[str], number: str) -> None:
    assert complaint(capsys, f"--port={number}") == (
        f"argument --port: must be a port number from 0 to 65535; got {number!r}"
    )


def test_empty_keys_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, "--api-key", "", API_KEY="k").startswith("--api-key is empty")
    assert complaint(capsys, "--admin-key=").startswith("--admin-key is empty; give the key")
    assert complaint(capsys, API_KEY=":sql*").startswith("API key 1 is empty")


def test_the_launcher_can_read_them_without_a_web_framework() -> None:
    program = (
        "import sys, multilora_gateway.settings, multilora_gateway.http.listener, "
        "multilora_gateway.json_lines; print(*sys.modules)"
    )
    command = [sys.executable, "-c", program]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "multilora_gateway.settings" in modules
    assert {"fastapi", "starlette", "uvicorn", "pydantic", "grpc"}.isdisjoint(modules)

"""Flags of the launcher that are the gateway's, and those of TGI that mean nothing here."""

import pytest

from gateway_settings import gateway_environment, gateway_flags, warn_of_useless
from multilora_gateway.cli import parse
from triton_settings import engine_environment, parse_flags


def test_flags_reach_the_gateway_and_keys_only_its_environment() -> None:
    words = "--port 0 --max-best-of 3 --max-stop-sequences 5 --payload-limit 9 --json-output"
    keys = ["--api-key=one", "--api-key=two:sql*", "--admin-key=root", "--hostname=0.0.0.0"]
    flags = parse_flags([*words.split(), *keys, "--cors-allow-origin=https://a.example"])
    command = gateway_flags(flags)
    assert not any(secret in word for word in command for secret in ("one", "two", "root"))
    settings = parse(command, gateway_environment(flags, {}))
    assert (settings.port, settings.max_best_of, settings.max_stop_sequences) == (0, 3, 5)
    assert (settings.payload_limit, settings.json_output, settings.hostname) == (9, True, "0.0.0.0")
    assert settings.cors_allow_origin == ("https://a.example",)
    assert (settings.api_keys, settings.admin_key) == (("one", "two:sql*"), "root")


def test_the_name_of_a_container_is_no_address() -> None:
    settings = parse(gateway_flags(parse_flags([])), {"HOSTNAME": "4f2a"})
    assert settings.hostname == "127.0.0.1"


def test_flags_without_meaning_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    given = "--sharded true --num-shard 2 --quantize eetq --trust-remote-code --ngrok --env"
    flags = parse_flags([*given.split(), "--model-id", "org/base"])
    warn_of_useless(flags)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert "warning: --num-shard has no effect here; leave it out" in lines
    assert engine_environment(flags)["MODEL_ID"] == "org/base"

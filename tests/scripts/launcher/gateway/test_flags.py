"""Flags of the launcher that are the gateway's, and those of TGI that mean nothing here."""

import socket

import pytest

from launcher.flags import engine_environment, parse_flags
from launcher.gateway.flags import gateway_environment, gateway_flags, gateway_settings, useless
from launcher.gateway.process import GatewayFailure, check_address
from launcher.triton.ports import Ports
from multilora_gateway.settings import Settings, parse_settings


def test_flags_reach_the_gateway_and_keys_only_its_environment() -> None:
    words = "-p 0 --max-best-of 3 --max-stop-sequences 5 --payload-limit 9 --json-output "
    words += "--strict-fields"
    keys = ["--api-key=one", "--api-key=two:sql*, org/*", "--api-key=base:", "--admin-key=root"]
    more = ["--hostname=0.0.0.0", "--cors-allow-origin=https://a.example"]
    more += ["--max-connections=9", "--max-connections-per-client=0", "--allowed-hosts=a,b"]
    flags = parse_flags([*words.split(), *keys, *more], {})
    command = gateway_flags(flags)
    assert not any(secret in word for word in command for secret in ("one", "two", "root"))
    known = gateway_settings(flags, {})
    settings = parse_settings(command, gateway_environment(known))
    assert settings == known
    assert (settings.port, settings.max_best_of, settings.max_stop_sequences) == (0, 3, 5)
    assert (settings.payload_limit, settings.json_output, settings.hostname) == (9, True, "0.0.0.0")
    assert settings.strict_fields and not parse_settings([], {}).strict_fields
    assert settings.cors_allow_origin == ("https://a.example",)
    assert (settings.max_connections, settings.max_connections_per_client) == (9, 0)
    assert settings.allowed_hosts == ("a", "b")
    assert settings.api_keys == ("one", "two:sql*,org/*", "base:")
    assert settings.admin_key == "root"


def test_variables_reach_the_gateway() -> None:
    environ = {"PORT": "81", "API_KEY": "one\ntwo:a*", "JSON_OUTPUT": "false", "HOSTNAME": "4f2a"}
    flags = parse_flags(["--max-best-of=3"], environ)
    known = gateway_settings(flags, environ)
    assert parse_settings(gateway_flags(flags), {**environ, **gateway_environment(known)}) == known
    assert known == Settings(port=81, max_best_of=3, api_keys=("one", "two:a*"))


def test_what_kubernetes_makes_of_services_is_no_setting() -> None:
    environ = {"PORT": "tcp://10.0.0.1:80", "METRICS_PORT": "tcp://10.0.0.1:9090"}
    flags = parse_flags([], environ)
    assert flags.metrics_port == parse_flags([], {}).metrics_port
    assert gateway_settings(flags, environ).port == 8080


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        (["--api-key="], {}, "--api-key is empty; give the key"),
        (["--api-key=good:a*", "--api-key="], {}, "--api-key is empty; give the key"),
        (["--admin-key="], {"ADMIN_KEY": "root"}, "--admin-key is empty"),
        (["--max-best-of=x"], {}, "argument --max-best-of: must be a whole number; got 'x'"),
        ([], {"PORT": "80a"}, "variable PORT: must be a port number"),
        ([], {"API_KEY": "K1:sql* org/*"}, "API key 1 holds white space"),
    ],
)
def test_what_the_gateway_would_refuse(
    capsys: pytest.CaptureFixture[str], flags: list[str], environ: dict[str, str], message: str
) -> None:
    with pytest.raises(SystemExit):
        gateway_settings(parse_flags(flags, environ), environ)
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"serve.py: error: {message}")


def test_an_address_that_cannot_be_listened_on() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(GatewayFailure, match=rf"{port} \(--hostname, --port\) cannot be used"):
            check_address(Settings(port=port), Ports())
    check_address(Settings(port=port), Ports())
    check_address(Settings(port=0), Ports())
    with pytest.raises(GatewayFailure, match=rf"port {port} \(--port\) is given twice"):
        check_address(Settings(port=port), Ports(8000, port, 8002))


def test_flags_without_meaning_are_accepted() -> None:
    given = "--sharded true --num-shard 2 --speculate 3 --trust-remote-code --ngrok --env"
    flags = parse_flags([*given.split(), "--model-id", "org/base"], {"PROMETHEUS_PORT": "9"})
    warnings = useless(flags, {})
    assert len(warnings) == 6
    assert "--num-shard has no effect here; leave it out" in warnings
    assert engine_environment(flags)["MODEL_ID"] == "org/base"


def test_variables_without_meaning_are_told_unless_other_programs_set_them() -> None:
    environ = {"NUM_SHARD": "2", "WATERMARK_GAMMA": "1", "MAX_BATCH_TOTAL_TOKENS": "9"}
    environ |= {"SPECULATE": "", "ENV": "production", "NGROK_AUTHTOKEN": "x"}
    environ |= {"PROMETHEUS_PORT": "tcp://10.0.0.1:9"}
    warnings = useless(parse_flags(["--sharded", "true"], environ), environ)
    assert [each.partition(" ")[0] for each in warnings] == [
        "--sharded", "NUM_SHARD", "MAX_BATCH_TOTAL_TOKENS", "WATERMARK_GAMMA",
    ]  # fmt: skip
    assert warnings[1] == "NUM_SHARD has no effect here; leave it out"

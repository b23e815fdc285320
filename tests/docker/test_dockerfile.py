"""The image's files: linted, and what the image would run is run here."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from launcher.flags import parse_flags
from launcher.gateway.flags import gateway_settings
from launcher.repository import REPOSITORY

DOCKERFILE = REPOSITORY / "docker/Dockerfile"
SECONDS = 30.0
# What a user gives after the image's name wins: here, free ports.
USER_FLAGS = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]


def instruction(name: str) -> list[str]:
    found = re.search(rf"^{name} (\[.*\])$", DOCKERFILE.read_text(), re.MULTILINE)
    assert found, name
    return json.loads(found[1])


def test_hadolint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    ended = subprocess.run(
        [hadolint, DOCKERFILE], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_what_is_copied_exists_and_is_sent() -> None:
    copied = [
        source
        for line in re.findall(r"^COPY (.*)$", DOCKERFILE.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    ]
    sent = DOCKERFILE.with_suffix(".dockerignore").read_text().splitlines()
    assert copied
    assert all((REPOSITORY / source).exists() and f"!{source}" in sent for source in copied)


def test_it_runs_as_a_user_by_number_with_data_and_port() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    user = next(line.split()[1] for line in lines if line.startswith("USER "))
    assert int(user) > 0
    assert {"VOLUME /data", "EXPOSE 80"} <= set(lines)


def test_what_a_user_sets_wins() -> None:
    instruction = re.search(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert instruction
    given = dict(word.split("=") for word in instruction[1].replace("\\\n", "").split())
    assert parse_flags([], given).hf_hub_cache == "/data"
    for name in ("HUGGINGFACE_HUB_CACHE", "HF_HUB_CACHE"):
        assert parse_flags([], {**given, name: "/mine"}).hf_hub_cache == "/mine"
    assert gateway_settings(parse_flags([], given), given).port == 80
    assert gateway_settings(parse_flags([], given), {**given, "PORT": "81"}).port == 81


def test_a_compiler_for_the_launchers_of_kernels() -> None:
    installed = re.search(r"apt-get install (.*)", DOCKERFILE.read_text())
    assert installed and {"gcc", "libc6-dev", "python3-dev"} <= set(installed[1].split())


@pytest.fixture(scope="module")
def entrypoint() -> list[str]:
    python, script, *flags = [*instruction("ENTRYPOINT"), *instruction("CMD")]
    assert python == "python3"
    mapped = Path(script.replace("/opt/multilora", str(REPOSITORY)))
    assert mapped.is_file()
    return [sys.executable, str(mapped), *flags]


def test_the_entrypoint_serves_and_stops_as_docker_stops_it(entrypoint: list[str]) -> None:
    process = subprocess.Popen(
        [*entrypoint, *USER_FLAGS],
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env={**os.environ, "PORT": "0", "THREADS": "1", "MODEL_ID": "", "LORA_ADAPTERS": ""},
    )
    try:
        assert process.stdout is not None
        example = next(line for line in process.stdout if line.startswith("curl"))
        url = shlex.split(example)[2].removesuffix("/generate_stream")
        assert url.startswith("http://0.0.0.0:")
        _check_answers(url)
        _check_health(url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()


def _check_answers(url: str) -> None:
    data = {"inputs": "hello world", "parameters": {"adapter_id": "upper"}}
    answer = requests.post(f"{url}/generate", json=data, timeout=SECONDS)
    assert answer.json() == {"generated_text": "HELLO WORLD"}
    deadline = time.monotonic() + SECONDS  # the engine's figures arrive a moment later
    while missing := _missing(requests.get(f"{url}/metrics", timeout=SECONDS).text):
        assert time.monotonic() < deadline, missing
        time.sleep(0.1)


def _missing(figures: str) -> set[str]:
    """Names of the dashboard that /metrics does not know."""
    known = set(re.findall(r"^\w+", figures, re.MULTILINE))
    dashboard = json.loads((REPOSITORY / "docker/grafana/dashboards/multilora.json").read_text())
    names: set[str] = set()
    for panel in dashboard["panels"]:
        expression = panel["targets"][0]["expr"]
        if several := re.fullmatch(r'{__name__=~"(\w+)\((.*)\)(\w*)"}', expression):
            names |= {several[1] + middle + several[3] for middle in several[2].split("|")}
        else:
            names |= set(re.findall(r"\b(?:multilora|gateway)_\w+", expression))
    assert len(names) > len(dashboard["panels"])
    return names - known


def _check_health(url: str) -> None:
    """The image's own command, where Docker hands in a proxy, for the port that was given."""
    text = " ".join(DOCKERFILE.read_text().replace("\\\n", " ").split())
    found = re.search(r"HEALTHCHECK .*? CMD (\[.*?\]) ENTRYPOINT", text)
    assert found
    _, *words = json.loads(found[1])
    ended = [
        subprocess.run(
            [sys.executable, *words], check=False, timeout=SECONDS, stderr=subprocess.DEVNULL,
            env={**os.environ, "PORT": port, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""},
        ).returncode
        for port in (url.rpartition(":")[2], "9")
    ]  # fmt: skip
    assert ended == [0, 1]

"""The compose file and what it mounts fit together. No engine of Docker is asked."""

import json
from typing import Any

import pytest
import yaml

from launcher.repository import REPOSITORY

DOCKER = REPOSITORY / "docker"


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((DOCKER / name).read_text())


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return read("compose.yaml")["services"]


def test_the_image_is_built_from_here(services: dict[str, Any]) -> None:
    build = services["multilora"]["build"]
    context = (DOCKER / build["context"]).resolve()
    assert context == REPOSITORY
    assert (context / build["dockerfile"]).is_file()


def test_ports_are_open_to_this_machine_only(services: dict[str, Any]) -> None:
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_mounts_exist(services: dict[str, Any]) -> None:
    mounts = [volume for service in services.values() for volume in service["volumes"]]
    named = read("compose.yaml")["volumes"]
    for mount in mounts:
        source = mount.split(":")[0]
        assert (DOCKER / source).exists() if source.startswith(".") else source in named


def test_prometheus_scrapes_the_gateway_and_grafana_reads_prometheus() -> None:
    targets = read("prometheus.yaml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert targets == ["multilora:80"]
    source = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    dashboard = json.loads((DOCKER / "grafana/dashboards/multilora.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}


def test_dashboards_lie_where_grafana_looks(services: dict[str, Any]) -> None:
    provider = read("grafana/provisioning/dashboards/multilora.yaml")["providers"][0]
    inside = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert provider["options"]["path"] in inside

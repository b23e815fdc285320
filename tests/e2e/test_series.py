"""Series that come and go on a real Triton server's /metrics, made by a Triton model of our own.

It runs TritonMetrics with figures that arrive as JSON; no engine, so any figure can be had.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from launcher.triton.server import TritonServer
from support.e2e.triton import DEMO, DIRECT, SECONDS, post

CONFIG = """\
backend: "python"
max_batch_size: 0
input [ { name: "figures" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "error" data_type: TYPE_STRING dims: [ 1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
MODEL = """\
import json
import sys

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.append(ENGINE)

from multilora.wire import metrics as triton_metrics
from multilora.metrics import METRICS, AdapterFigures


class TritonPythonModel:
    def initialize(self, args):
        triton_metrics._UPDATE_SECONDS = 0.0
        self.figures = AdapterFigures({}, {}, (), (), 64)
        self.on_server = triton_metrics.TritonMetrics(pb_utils.MetricFamily, self, "probe")
        family = pb_utils.MetricFamily("kept", "A family that lives", pb_utils.MetricFamily.GAUGE)
        metric = family.Metric(labels={"model": "probe"})
        del metric
        self.family = family

    def adapter_figures(self):
        return self.figures

    def metrics(self):
        return dict.fromkeys(METRICS, 0.0)

    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        given = pb_utils.get_input_tensor_by_name(request, "figures").as_numpy().item()
        try:
            self.figures = AdapterFigures(**json.loads(given))
            self.on_server.tick()
            error = ""
        except Exception as problem:
            error = repr(problem)
        result = np.array([error.encode()], dtype=np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("error", result)])

    def finalize(self):
        self.on_server.close()
        del self.family
"""

REQUESTS = "multilora_adapter_requests_total"
TOKENS = "multilora_adapter_generated_tokens_total"
INFO = "lora_requests_info"
ODD = 'say "hi" 東京 🎉'


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("repository")
    folder = repository / "probe" / "1"
    folder.mkdir(parents=True)
    (repository / "probe" / "config.pbtxt").write_text(CONFIG)
    (folder / "model.py").write_text(MODEL.replace("ENGINE", repr(str(DEMO.parent))))
    with TritonServer(model_repository=repository) as server:
        server.wait_ready(timeout=60)
        yield server
        server.check()


def lines(server: TritonServer, *names: str) -> set[str]:
    """The lines of these metrics, without the model's label."""
    with DIRECT.open(server.metrics_url, timeout=SECONDS) as answer:
        text = answer.read().decode().replace(',model="probe"', "")
    return {line for line in text.splitlines() if line.startswith(names)}


def show(server: TritonServer, *names: str, **figures: Any) -> set[str]:
    empty = {"requests": {}, "tokens": {}, "running": [], "waiting": [], "max_lora": 64}
    status, answer = post(server, {"figures": json.dumps({**empty, **figures})}, "probe")
    assert (status, answer["error"]) == (200, "")
    return lines(server, *names)


def test_series_of_adapters_come_grow_and_go(probe: TritonServer) -> None:
    names = (REQUESTS, TOKENS)
    assert show(probe, *names, requests={"a": 2, "_base": 1}, tokens={"a": 5, "_base": 0}) == {
        f'{REQUESTS}{{adapter="a"}} 2',
        f'{REQUESTS}{{adapter="_base"}} 1',
        f'{TOKENS}{{adapter="a"}} 5',
        f'{TOKENS}{{adapter="_base"}} 0',
    }
    assert show(probe, *names, requests={ODD: 1, "_base": 4}, tokens={ODD: 2}) == {
        f'{REQUESTS}{{adapter="say \\"hi\\" 東京 🎉"}} 1',
        f'{REQUESTS}{{adapter="_base"}} 4',
        f'{TOKENS}{{adapter="say \\"hi\\" 東京 🎉"}} 2',
    }
    assert show(probe, *names, requests={"a": 1}) == {f'{REQUESTS}{{adapter="a"}} 1'}
    assert show(probe, *names) == set()


def test_lora_requests_info_is_one_series(probe: TritonServer) -> None:
    seen = []
    for running in (["b", "a"], ["a"], [], ["b", "a"]):
        (line,) = show(probe, INFO, running=running, waiting=["c"])
        labels, _, value = line.rpartition(" ")
        assert labels == (
            f'{INFO}{{max_lora="64",running_lora_adapters="{",".join(sorted(running))}",'
            'waiting_lora_adapters="c"}'
        )
        seen.append(float(value))
    assert seen == sorted(set(seen))


def test_a_thousand_changes_leave_nothing_behind(probe: TritonServer) -> None:
    for number in range(1000):
        ids = [f"a{number}", f"a{number + 1}"]
        counts = dict.fromkeys(ids, number + 1)
        shown = show(probe, REQUESTS, TOKENS, INFO, requests=counts, tokens=counts, running=ids)
        assert len(shown) == 5
    assert len(show(probe, REQUESTS, TOKENS, INFO)) == 1


def test_dropping_a_metric_alone_removes_nothing(probe: TritonServer) -> None:
    """Why each series has a family of its own; fails once a server behaves otherwise."""
    assert lines(probe, "kept") == {'kept{model="probe"} 0'}

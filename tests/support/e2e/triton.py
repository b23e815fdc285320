"""What end-to-end tests say to a running Triton server, over real HTTP and real gRPC."""

import contextlib
import http.client
import json
import queue
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from launcher.triton.server import TritonServer

DEMO = Path(__file__).parents[3] / "model_repository/multilora_llm/1/demo"
SECONDS = 60.0  # no answer may take longer
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy to ourselves
_TYPES: dict[str, tuple[str, Any]] = {
    "input_ids": ("INT32", np.int32),
    "max_tokens": ("INT32", np.int32),
    "temperature": ("FP32", np.float32),
    "top_p": ("FP32", np.float32),
    "seed": ("UINT64", np.uint64),
    **dict.fromkeys(("text_input", "adapter_id", "sampling_parameters"), ("BYTES", np.object_)),
}
# "" is the default, the demo, whatever the environment says
DEMO_SETTINGS = {"MODEL_ID": "", "LORA_ADAPTERS": "", "THREADS": "1", "KV_CACHE_MEMORY": "64MiB"}


@contextlib.contextmanager
def demo_server(**settings: str) -> Iterator[TritonServer]:
    """A Triton server with the demo and `settings`, by name. Fails when, at the end, one of its
    processes has died or something is left over, whatever the tests did."""
    with TritonServer({**DEMO_SETTINGS, **settings}) as server:
        server.wait_ready(timeout=120)
        yield server
        print(*server.log_tail(), sep="\n")  # shown when the next lines fail
        server.check()
        wait_until_idle(server)


@dataclass(frozen=True)
class Example:
    """A prompt of the demo and its exact answer. `adapter_id` "" is the base model."""

    adapter_id: str
    prompt: str
    answer: str


def examples() -> list[Example]:
    """Every example of the demo's skills.json."""
    skills = json.loads((DEMO / "skills.json").read_text(encoding="utf-8"))
    return [
        Example(skill["adapter_id"], example["prompt"], example["answer"])
        for skill in skills
        for example in skill["examples"]
    ]


def post(
    server: TritonServer, body: dict[str, Any], model: str = "multilora", verb: str = "generate"
) -> tuple[int, Any]:
    """POST to a model → (HTTP status, JSON answer)."""
    url = f"{server.http_url}/v2/models/{model}/{verb}"
    try:
        with DIRECT.open(url, json.dumps(body).encode(), timeout=SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def generate(server: TritonServer, prompt: str, adapter_id: str = "", **inputs: Any) -> str:
    """The whole text of an answer, over /generate."""
    body = {"text_input": prompt, "adapter_id": adapter_id, "max_tokens": 200, **inputs}
    status, answer = post(server, body)
    assert status == 200, answer
    return answer["text_output"]


def stream_events(
    server: TritonServer, body: dict[str, Any], model: str = "multilora"
) -> Generator[dict[str, Any], None, None]:
    """The events of /generate_stream; leaving the loop closes the connection."""
    connection = http.client.HTTPConnection("localhost", server.ports.http, timeout=SECONDS)
    try:
        path = f"/v2/models/{model}/generate_stream"
        connection.request("POST", path, json.dumps({**body, "stream": True}))
        for line in connection.getresponse():
            if line.startswith(b"data:"):
                yield json.loads(line[5:])
    finally:
        connection.close()


@dataclass
class GrpcStream:
    """One request on its own gRPC stream: `with GrpcStream(server, model, …) as stream`.

    `pieces` collects the texts, `outputs` all other output tensors of the last response.
    """

    server: TritonServer
    model: str
    inputs: dict[str, Any]
    request_id: str = ""
    pieces: list[str] = field(default_factory=list)
    outputs: dict[str, list[Any]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._responses: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._client = triton.InferenceServerClient(self.server.grpc_address)
        self._client.start_stream(
            lambda result, error: self._responses.put(error or result),
            stream_timeout=SECONDS,
        )
        self._client.async_stream_infer(
            self.model,
            [_tensor(name, value) for name, value in self.inputs.items()],
            request_id=self.request_id,
            enable_empty_final_response=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def take(self) -> bool:
        """Wait for the next response; True when it is the last. Raises the server's error."""
        response = self._responses.get(timeout=SECONDS)
        if isinstance(response, InferenceServerException):
            raise response
        message = response.get_response()
        arrays = {output.name: response.as_numpy(output.name) for output in message.outputs}
        if "text_output" in arrays:
            self.pieces.append(arrays.pop("text_output").item().decode())
            self.outputs = {name: array.reshape(-1).tolist() for name, array in arrays.items()}
        return message.parameters["triton_final_response"].bool_param

    def text(self) -> str:
        """Read to the end → the whole text."""
        while not self.take():
            pass
        return "".join(self.pieces)

    def cancel(self) -> None:
        self._client.stop_stream(cancel_requests=True)


def grpc_text(server: TritonServer, model: str = "multilora_llm", **inputs: Any) -> str:
    with GrpcStream(server, model, {"stream": True, **inputs}) as stream:
        return stream.text()


def grpc_error(server: TritonServer, model: str, inputs: dict[str, Any]) -> tuple[str, str]:
    """(code, message) of a request that must fail. A stream carries errors as text alone, so the
    code is the word in brackets at its end; "" when the Triton server itself refused."""
    try:
        with GrpcStream(server, model, inputs) as stream:
            text = stream.text()
    except InferenceServerException as error:
        message, _, tag = error.message().rpartition(" [")
        return (tag.rstrip("]"), message) if tag.endswith("]") else ("", error.message())
    raise AssertionError(f"no error but {text!r}")


def token_ids(server: TritonServer, prompt: str) -> list[int]:
    """The prompt's ids, from the Triton model `tokenizer`."""
    client = triton.InferenceServerClient(server.grpc_address)
    try:
        answer = client.infer("tokenizer", [_tensor("text_input", prompt)])
        ids = answer.as_numpy("input_ids") if answer else None
        assert ids is not None
        return ids[0].tolist()
    finally:
        client.close()


def metrics(server: TritonServer) -> dict[str, float]:
    """The engine's figures on /metrics, by name (histograms by their _count and _sum)."""
    with DIRECT.open(server.metrics_url, timeout=SECONDS) as answer:
        lines = answer.read().decode().splitlines()
    return {
        line.split("{")[0]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("multilora_") and "_bucket" not in line
    }


def wait_until_idle(server: TritonServer) -> None:
    """Wait until nothing runs; fail when a KV block or adapter reference is not given back."""
    held = ("running_requests", "waiting_requests", "kv_blocks_used", "adapter_references")
    deadline = time.monotonic() + 30
    while True:
        figures = metrics(server)
        left = {name: value for name in held if (value := figures[f"multilora_{name}"])}
        if not left:
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def eventually(value: Callable[[], float], want: float) -> float:
    """Poll until `value()` is `want`, for a while → the last value."""
    deadline = time.monotonic() + 5
    while (last := value()) != want and time.monotonic() < deadline:
        time.sleep(0.05)
    return last


def _tensor(name: str, value: Any) -> triton.InferInput:
    datatype, dtype = _TYPES.get(name, ("BOOL", np.bool_))
    if isinstance(value, np.ndarray):  # wrong on purpose
        array, datatype = (
            value,
            {"int64": "INT64", "float32": "FP32"}.get(value.dtype.name, datatype),
        )
    else:
        values = [value.encode() if isinstance(value, str) else value]
        array = np.array([value if isinstance(value, list) else values], dtype=dtype)
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor

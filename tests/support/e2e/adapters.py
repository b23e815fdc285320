"""What end-to-end tests ask of the Triton model `adapters`, over /generate, gRPC and the CLI."""

import json
import os
import queue
import subprocess
import sys
import time
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from launcher.triton.server import TritonServer
from support.e2e.triton import metrics, post

USED = ("multilora_adapter_pages_used", "multilora_adapter_host_bytes_used")


def administer(server: TritonServer, **inputs: Any) -> Any:
    """The answer over /generate."""
    status, answer = post(server, inputs, model="adapters")
    assert status == 200, answer
    return json.loads(answer["result"])


def refusal(server: TritonServer, **inputs: Any) -> tuple[str, str]:
    """(code, message) over gRPC of an action that must fail: the code is the word in brackets at
    the end of the message, "" when the Triton server itself refused."""
    try:
        result = infer(server, **inputs)
    except InferenceServerException as error:
        message = error.message().removeprefix("in ensemble 'adapters', ")
        tag = message.rpartition(" [")[2]
        return tag.rstrip("]") if tag.endswith("]") else "", message
    raise AssertionError(f"no error but {result}")


def infer(server: TritonServer, **inputs: Any) -> Any:
    """The answer over a gRPC stream of tritonclient's own."""
    client = triton.InferenceServerClient(server.grpc_address)
    responses: queue.SimpleQueue[Any] = queue.SimpleQueue()
    try:
        client.start_stream(lambda result, error: responses.put(error or result), 60)
        client.async_stream_infer("adapters", [_tensor(*item) for item in inputs.items()])
        response = responses.get(timeout=60)
        if isinstance(response, Exception):
            raise response
        result = response.as_numpy("result")
        assert result.shape == (1, 1)
        return json.loads(result.item())
    finally:
        client.close()


def command(server: TritonServer, *args: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `multilora adapters …`."""
    done = subprocess.run(
        [sys.executable, "-m", "multilora_client.cli", "adapters", *args],
        env={**os.environ, "MULTILORA_URL": server.grpc_address},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def used(server: TritonServer) -> tuple[float, ...]:
    """Device pages and host bytes that adapters occupy, by the metrics."""
    figures = metrics(server)
    return tuple(figures[name] for name in USED)


def settled(server: TritonServer) -> tuple[float, ...]:
    """`used`, once what went before shows: metrics are sent twice a second."""
    last: tuple[float, ...] = ()
    while (now := used(server)) != last:
        last = now
        time.sleep(0.8)
    return now


def _tensor(name: str, value: Any) -> triton.InferInput:
    if isinstance(value, np.ndarray):
        array = value
    elif isinstance(value, bool):
        array = np.array([[value]])
    elif isinstance(value, float):
        array = np.array([[value]], dtype=np.float32)
    else:
        raw = value.encode() if isinstance(value, str) else value
        array = np.array([[raw]], dtype=np.object_)
    datatype = {"O": "BYTES", "b": "BOOL", "f": "FP32"}[array.dtype.kind]
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor

"""The Triton model `multilora_llm`: token ids in, a stream of text out.

This is the seam between the Triton server's Python backend and the engine: it hands Triton requests
to the intake and responses to Triton, and decides nothing. With the model.py of `tokenizer` it is
the only place that knows the Python backend.
"""

import gc
import json
import logging
import os
import threading
from functools import partial
from typing import Any

import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

from multilora.config import EngineConfig
from multilora.errors import RequestError, StartupError
from multilora.wire.intake import Intake
from multilora.wire.metrics import TritonMetrics
from multilora.wire.responder import Responder
from multilora.wire.response import JointResponse, Response, SharedResponse
from multilora.wire.triton_request import read_request
from multilora_text.tokenizer import Tokenizer

_LOG = logging.getLogger("multilora.model")


class TritonClient:
    """The way back to the sender of one Triton request.

    Law: nothing touches the sender after the last word, which any thread may send while another
    asks whether the client is still there: the server has freed what it would look at.
    """

    def __init__(self, request: Any, tokenizer: Tokenizer) -> None:
        self._sender = request.get_response_sender()
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._ended = False
        self.outputs: frozenset[str] = frozenset()

    def send(self, response: Response | JointResponse | SharedResponse) -> None:
        arrays = response.arrays(self.outputs, self._decode)
        tensors = [pb_utils.Tensor(name, array) for name, array in arrays.items()]
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if response.final else 0
        with self._lock:
            self._ended = response.final
            self._sender.send(pb_utils.InferenceResponse(tensors), flags=flags)

    def fail(self, error: RequestError) -> None:
        code = getattr(pb_utils.TritonError, error.code.value)
        tagged = pb_utils.TritonError(error.tagged, code)
        response = pb_utils.InferenceResponse(error=tagged)
        with self._lock:
            self._ended = True
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self) -> bool:
        with self._lock:
            return not self._ended and self._sender.is_cancelled()

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


class TritonPythonModel:
    """The names and signatures of the methods are the Python backend's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the base model and the adapters. TritonModelException: cannot start, and why."""
        logging.basicConfig(format="%(levelname).1s %(name)s: %(message)s")
        logging.getLogger("multilora").setLevel(logging.INFO)
        model_config = json.loads(args["model_config"])
        parameters = {
            name: value["string_value"] for name, value in model_config["parameters"].items()
        }
        try:
            config = EngineConfig.from_settings(parameters, os.environ)
            from multilora.engine import Engine  # torch: the auto-complete stub must not load it

            self._engine = Engine(config)
            if self._engine.tokenizer is None:
                raise StartupError(f"{self._engine.model_folder} holds no tokenizer.json; add it")
        except StartupError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self._tokenizer = self._engine.tokenizer
        self._metrics = TritonMetrics(pb_utils.MetricFamily, self._engine, args["model_name"])
        self._responder = Responder(self._engine, self._tokenizer, self._metrics)
        self._intake = Intake(self._engine, self._tokenizer, self._responder)
        self._engine.start()
        self._responder.start()
        # What stands now stays: looking it over for garbage takes 0.15 s, in which no token moves.
        gc.collect()
        gc.freeze()
        _LOG.info("ready")

    def execute(self, requests: list[Any]) -> None:
        """Hand requests to the intake; the responder thread answers them."""
        for request in requests:
            client = TritonClient(request, self._tokenizer)
            self._intake.accept(client, partial(read_request, request))

    def finalize(self) -> None:
        self._engine.close()
        self._responder.join()
        self._intake.close()
        self._metrics.close()

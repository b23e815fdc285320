"""The Triton model `multilora_llm`: token ids in, a stream of text out.

This is the seam between the Triton server's Python backend and the engine: it turns Triton requests
into Requests and replies into Triton responses, and decides nothing. With the tokenizer's model.py
it is the only place that knows the Python backend.
"""

import itertools
import json
import logging
import os
from collections.abc import Callable
from typing import Any

import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

from multilora.config import EngineConfig
from multilora.errors import ErrorCode, RequestError, StartupError, invalid
from multilora.reply import Reply
from multilora.responder import Responder, stopped_reply
from multilora.tokenizer import Tokenizer
from multilora.triton_metrics import TritonMetrics
from multilora.triton_request import is_stop, parse_request

_LOG = logging.getLogger("multilora.model")


class TritonClient:
    """The way back to the sender of one Triton request."""

    def __init__(self, request: Any, decode: Callable[[list[int]], str]) -> None:
        self._sender = request.get_response_sender()
        self._decode = decode
        self.outputs: frozenset[str] = frozenset()  # optional outputs, known once it is parsed

    def send(self, reply: Reply) -> None:
        arrays = reply.arrays(self.outputs, self._decode)
        tensors = [pb_utils.Tensor(name, array) for name, array in arrays.items()]
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if reply.final else 0
        self._sender.send(pb_utils.InferenceResponse(tensors), flags=flags)

    def fail(self, error: RequestError) -> None:
        code = getattr(pb_utils.TritonError, error.code.value)
        tagged = pb_utils.TritonError(error.tagged, code)
        response = pb_utils.InferenceResponse(error=tagged)
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self) -> bool:
        return self._sender.is_cancelled()


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
            self._tokenizer = Tokenizer.from_folder(self._engine.model_folder)
        except StartupError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        model_name = args["model_name"]
        self._metrics = TritonMetrics(pb_utils.MetricFamily, self._engine.metrics, model_name)
        self._responder = Responder(self._engine, self._tokenizer, self._metrics)
        self._numbers = itertools.count(1)
        self._engine.start()
        self._responder.start()
        _LOG.info("ready, adapters: %s", ", ".join(self._engine.adapter_ids) or "none")

    def execute(self, requests: list[Any]) -> None:
        """Hand requests to the engine; the responder thread answers them."""
        for request in requests:
            client = TritonClient(
                request, lambda ids: self._tokenizer.decode(ids, skip_special_tokens=False)
            )
            try:
                self._accept(request, client)
            except RequestError as error:
                client.fail(error)
            except Exception as error:
                _LOG.exception("a request could not be read")
                client.fail(RequestError(ErrorCode.INTERNAL, f"internal error: {error!r}"))

    def finalize(self) -> None:
        self._engine.close()
        self._responder.join()
        self._metrics.close()

    def _accept(self, request: Any, client: TritonClient) -> None:
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        client_id = request.request_id()
        if is_stop(tensors):
            if not client_id:
                raise invalid("stop needs the id of the request to cancel as its own request id")
            self._responder.stop(client_id)
            client.send(stopped_reply())
            return
        request_id = f"{client_id}#{next(self._numbers)}"
        parsed = parse_request(tensors, json.loads(request.parameters()), client_id, request_id)
        client.outputs = parsed.outputs
        self._responder.add(parsed, client)
        try:
            self._engine.submit(parsed.request)
        except RequestError:
            self._responder.discard(request_id)
            raise

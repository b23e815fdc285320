"""The Triton model `multilora_llm`: token ids in, a stream of text out.

This is the seam between the Triton server's Python backend and the engine: it turns Triton requests
into Requests and replies into Triton responses, and decides nothing. With the tokenizer's model.py
it is the only place that knows the Python backend.
"""

import itertools
import json
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

from multilora.adapters.admin.command import AdminCommand
from multilora.config import EngineConfig
from multilora.errors import RequestError, StartupError, cancelled, internal, invalid
from multilora.grammar.threads import GrammarThreads
from multilora.wire.early_stops import EarlyStops
from multilora.wire.metrics import TritonMetrics
from multilora.wire.reply import Reply, json_reply
from multilora.wire.responder import Responder, stopped_reply
from multilora.wire.triton_request import (
    TritonRequest,
    admin_command,
    is_admin,
    is_stop,
    parse_request,
)

_LOG = logging.getLogger("multilora.model")


class TritonClient:
    """The way back to the sender of one Triton request.

    Law: nothing touches it after the last word, which any thread may send while another asks
    whether the sender is still there: the server has freed what it would look at.
    """

    def __init__(self, request: Any, decode: Callable[[list[int]], str]) -> None:
        self._sender = request.get_response_sender()
        self._decode = decode
        self._lock = threading.Lock()
        self._ended = False
        self.outputs: frozenset[str] = frozenset()  # optional outputs, known once it is parsed

    def send(self, reply: Reply) -> None:
        arrays = reply.arrays(self.outputs, self._decode)
        tensors = [pb_utils.Tensor(name, array) for name, array in arrays.items()]
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if reply.final else 0
        with self._lock:
            self._ended = reply.final
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
        self._config = config
        self._tokenizer = self._engine.tokenizer
        self._metrics = TritonMetrics(pb_utils.MetricFamily, self._engine, args["model_name"])
        self._responder = Responder(self._engine, self._tokenizer, self._metrics)
        self._numbers = itertools.count(1)
        self._early_stops = EarlyStops()
        # answers commands and renders chats that had to wait: neither is the engine thread's work
        self._helpers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="multilora")
        self._grammar_threads = GrammarThreads(config.max_concurrent_requests)
        self._engine.start()
        self._responder.start()
        _LOG.info("ready")

    def execute(self, requests: list[Any]) -> None:
        """Hand requests to the engine; the responder thread answers them."""
        for request in requests:
            client = TritonClient(
                request, lambda ids: self._tokenizer.decode(ids, skip_special_tokens=False)
            )
            self._guard(client, self._accept, request, client)

    def finalize(self) -> None:
        self._engine.close()
        self._responder.join()
        self._helpers.shutdown()
        self._grammar_threads.close()
        self._metrics.close()

    def _accept(self, request: Any, client: TritonClient) -> None:
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        client_id = request.request_id()
        if is_stop(tensors):
            if not client_id:
                raise invalid("stop needs the id of the request to cancel as its own request id")
            self._early_stops.stop(client_id)
            self._responder.stop(client_id)
            client.send(stopped_reply())
            return
        if is_admin(tensors):
            command = admin_command(tensors)
            self._helpers.submit(self._guard, client, self._administer, command, client)
            return
        request_id = f"{client_id}#{next(self._numbers)}"
        parameters = json.loads(request.parameters())
        timeout = self._config.adapter_timeout
        parsed = parse_request(tensors, parameters, client_id, request_id, timeout)
        client.outputs = parsed.outputs
        self._early_stops.begin(client, client_id)
        if parsed.messages is None:
            return self._begin(parsed, client)
        if not parsed.request.adapter_id:
            return self._begin(parsed.with_template(None, self._tokenizer), client)
        template = self._engine.admin.chat_template(
            parsed.request.adapter_id, parsed.request.adapter_timeout, parsed.request.adapter_token
        )
        self._when_done(
            template,
            client,
            lambda own: self._begin(parsed.with_template(own, self._tokenizer), client),
        )

    def _administer(self, command: AdminCommand, client: TritonClient) -> None:
        """On a thread of its own: to list the adapters may take a look at thousands of folders."""
        if command.action == "describe":
            from multilora.wire.description import describe  # torch, as in initialize

            return client.send(json_reply(describe(self._engine)))
        answer = self._engine.admin.execute(command, self._config.adapter_timeout)
        self._when_done(answer, client, lambda result: client.send(json_reply(result)))

    def _begin(self, parsed: TritonRequest, client: TritonClient) -> None:
        if parsed.request.sampling.grammar:  # compiling it takes time that others need
            self._grammar_threads.submit(lambda: self._guard(client, self._compile, parsed, client))
        else:
            self._submit(parsed, client)

    def _compile(self, parsed: TritonRequest, client: TritonClient) -> None:
        """Before the responder knows the client: it must not poll one that was refused."""
        if client.is_cancelled() or self._early_stops.is_stopped(client):
            raise cancelled()
        if grammar := parsed.request.sampling.grammar:
            self._engine.compile(grammar)
        self._submit(parsed, client)

    def _submit(self, parsed: TritonRequest, client: TritonClient) -> None:
        self._responder.add(parsed, client)
        try:
            self._engine.submit(parsed.request)
        except RequestError:
            self._responder.discard(parsed.request.request_id)
            raise
        if self._early_stops.end(client):
            self._engine.abort(parsed.request.request_id)

    def _when_done(
        self, future: "Future[Any]", client: TritonClient, go_on: Callable[[Any], None]
    ) -> None:
        """Go on with the result: at once if it is there, else later on another thread."""
        if future.done():
            go_on(future.result())
        else:
            future.add_done_callback(
                lambda done: self._helpers.submit(self._guard, client, lambda: go_on(done.result()))
            )

    def _guard(self, client: TritonClient, work: Callable[..., None], *arguments: Any) -> None:
        """Work for one client: what goes wrong is that client's answer."""
        try:
            work(*arguments)
        except RequestError as error:
            self._fail(client, error)
        except Exception as error:
            _LOG.exception("a request could not be read")
            self._fail(client, internal(f"internal error: {error!r}"))

    def _fail(self, client: TritonClient, error: RequestError) -> None:
        self._early_stops.end(client)
        client.fail(error)

"""A gRPC server on the loopback that answers ModelStreamInfer as a Triton server would.

What it does is chosen by the request's `adapter_id`; like an ensemble, it goes on after its caller
has left and ends only by a request with `stop`.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from multilora_client.tensors import Scalar, add_input, decode

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

PIECES = ("Grüße ", "aus 東", "京 🎉")


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """`received` holds the requests in order, as (model, id, inputs). `dead`: the process of its
    engine has died; `ending`: it takes no requests any more;
    `forgetful`: it knows no shared stream. `port` 0 is any free one."""

    models = ("multilora", "multilora_llm")

    def __init__(self, port: int = 0) -> None:
        self.dead = self.ending = self.forgetful = False
        self.cancelled = 0  # streams that their clients broke off
        self.received: list[tuple[str, str, dict[str, list[Scalar]]]] = []
        self.meeting = threading.Barrier(4)
        self._stopped: dict[str, threading.Event] = {}
        self._shared: dict[str, queue.SimpleQueue[service_pb2.ModelStreamInferResponse]] = {}
        self._server = grpc.server(ThreadPoolExecutor(16))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.url = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        self._server.start()

    def close(self) -> None:
        for event in self._stopped.values():
            event.set()
        self._server.stop(0).wait()

    def wait_until_stopped(self, request_id: str) -> bool:
        return self._event(request_id).wait(10)

    def ModelStreamInfer(
        self,
        request_iterator: Iterator[service_pb2.ModelInferRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[service_pb2.ModelStreamInferResponse]:
        whole: list[bool] = []
        context.add_callback(lambda: self._count(whole))
        yield from self._answers(request_iterator)
        whole.append(True)

    def _answers(
        self, requests: Iterator[service_pb2.ModelInferRequest]
    ) -> Iterator[service_pb2.ModelStreamInferResponse]:
        for request in requests:
            if self.dead:
                message = "Stub process 'multilora_llm_0_0' is not healthy."
                yield service_pb2.ModelStreamInferResponse(error_message=message)
                return
            if self.ending or request.model_name not in self.models:
                message = f"Request for unknown model: '{request.model_name}' is not found"
                yield service_pb2.ModelStreamInferResponse(error_message=message)
                return
            inputs = {
                tensor.name: decode(tensor.datatype, raw)
                for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
            }
            self.received.append((request.model_name, request.id, inputs))
            if inputs.get("stop"):
                self._event(request.id).set()
                yield _response(final=True)
            elif inputs.get("open_shared_stream"):
                yield from self._open(request.id)
            elif inputs.get("shared_stream"):
                yield from self._share(request.model_name, request.id, inputs)
            else:
                yield from self.answer(request.model_name, request.id, inputs)

    def end_shared_streams(self) -> None:
        """As the engine does once they are of no use."""
        for name in list(self._shared):
            self._event(name).set()

    def _open(self, name: str) -> Iterator[service_pb2.ModelStreamInferResponse]:
        said = self._shared[name] = queue.SimpleQueue()
        yield _response()
        while not self._event(name).is_set() or not said.empty():
            with contextlib.suppress(queue.Empty):
                yield said.get(timeout=0.05)
        del self._shared[name]
        yield _response(final=True)

    def _share(
        self, model: str, request_id: str, inputs: dict[str, list[Scalar]]
    ) -> Iterator[service_pb2.ModelStreamInferResponse]:
        said = self._shared.get(str(inputs["shared_stream"][0]))
        if said is None or self.forgetful:
            message = "no shared stream is open [UNAVAILABLE]"
            yield service_pb2.ModelStreamInferResponse(error_message=message)
            return
        for message in self.answer(model, request_id, inputs):
            if message.error_message:
                yield message
                return
            response = message.infer_response
            values = zip(response.outputs, response.raw_output_contents, strict=True)
            found = {output.name: decode(output.datatype, raw) for output, raw in values}
            text = str(found.get("text_output", [""])[0])
            reason = str(found.get("finish_reason", ["None"])[0])
            said.put(_response(text, finish_reason=reason, request_id=request_id))
        yield _response(final=True)

    def answer(
        self, model: str, request_id: str, inputs: dict[str, list[Scalar]]
    ) -> Iterator[service_pb2.ModelStreamInferResponse]:
        adapter_id = inputs.get("adapter_id", [""])[0]
        if isinstance(adapter_id, str) and adapter_id.isupper():
            message = f"in ensemble '{model}', no luck:\n{adapter_id} [{adapter_id}]"
            yield service_pb2.ModelStreamInferResponse(error_message=message)
            return
        if adapter_id == "full":
            message = "2 requests run or wait, the most that --max-concurrent-requests allows"
            yield service_pb2.ModelStreamInferResponse(error_message=f"{message} [UNAVAILABLE]")
            return
        if adapter_id == "silent":
            self._event(request_id).wait(10)
        if adapter_id == "endless":
            while not self._event(request_id).wait(0.01):
                yield _response("more ")
        if adapter_id == "together":  # answers only when four streams are open at once
            self.meeting.wait(10)
        pieces = PIECES if inputs.get("stream") else ("".join(PIECES),)
        for piece in pieces:
            yield _response(piece, finish_reason="None", tokens=len(PIECES) // len(pieces))
        if adapter_id != "truncated":
            yield _response(final=True, finish_reason="stop")

    def _count(self, whole: list[bool]) -> None:
        self.cancelled += not whole

    def _event(self, request_id: str) -> threading.Event:
        return self._stopped.setdefault(request_id, threading.Event())


def _response(
    text: str = "",
    final: bool = False,
    finish_reason: str = "",
    tokens: int = 0,
    request_id: str = "",
) -> service_pb2.ModelStreamInferResponse:
    request = service_pb2.ModelInferRequest()  # lends its tensors to the response
    if request_id:
        add_input(request, "request_id", "BYTES", request_id)
        add_input(request, "output_ids", "INT32", [])
    if text or request_id:
        add_input(request, "text_output", "BYTES", text)
    if finish_reason:
        add_input(request, "finish_reason", "BYTES", finish_reason)
        add_input(request, "num_input_tokens", "UINT32", 7)
        add_input(request, "num_output_tokens", "UINT32", tokens)
    response = service_pb2.ModelInferResponse(raw_output_contents=request.raw_input_contents)
    for tensor in request.inputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    response.parameters["triton_final_response"].bool_param = final
    return service_pb2.ModelStreamInferResponse(infer_response=response)

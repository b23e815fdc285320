"""The synchronous client. One object may be used from many threads, with many streams at once."""

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterator, Sequence
from typing import Unpack, cast

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from multilora_client.adapters.client import Adapters
from multilora_client.connection import Endpoint
from multilora_client.errors import from_status
from multilora_client.protocol import (
    CANCEL_SECONDS,
    Generation,
    Message,
    Reply,
    generate_request,
    stop_request,
)
from multilora_client.sampling import Sampling


class MultiLoRAClient:
    """Generates text on a Triton server with any adapter it knows; `adapters` administers them.

    `timeout` is in seconds per request; None waits for ever. Every method raises MultiLoRAError or
    one of its subclasses. Closing the client cancels what is still running.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout: float | None = None,
        model: str = "multilora",
        engine: str = "multilora_llm",
        admin: str = "adapters",
    ) -> None:
        endpoint = Endpoint.parse(url)
        self.url = endpoint.address
        self._timeout = timeout
        self._model = model
        self._engine = engine
        self._channel = endpoint.channel()
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self.adapters = Adapters(self._stub, admin, self.url, timeout)
        self._running: set[str] = set()  # ids of the requests that TextStreams are reading

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        adapter_id: str = "",
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """The whole answer to a text, or to the messages of a chat."""
        request = generate_request(self._model, prompt, adapter_id, False, sampling)
        with TextStream(self, request, timeout) as stream:
            for _ in stream:
                pass
            return stream.result

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        adapter_id: str = "",
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> "TextStream":
        """The answer in pieces as they are generated. The request is sent at once."""
        request = generate_request(self._model, prompt, adapter_id, True, sampling)
        return TextStream(self, request, timeout)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        adapter_id: str = "",
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """The assistant's next turn, in the base model's chat template."""
        return self.generate(list(messages), adapter_id=adapter_id, timeout=timeout, **sampling)

    def cancel(self, request_id: str) -> None:
        """Ask the server to stop a running request; does nothing when there is none, or no server.

        Breaking off a call is not enough: an ensemble does not pass that on to its steps.
        """
        request = stop_request(self._engine, request_id)
        try:
            for _ in self._stub.ModelStreamInfer(iter([request]), timeout=CANCEL_SECONDS):
                pass
        except (grpc.RpcError, ValueError):  # ValueError: the channel is closed
            pass

    def close(self) -> None:
        for request_id in list(self._running):
            self.cancel(request_id)
        self._channel.close()

    def __enter__(self) -> "MultiLoRAClient":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class TextStream(Iterator[str]):
    """The pieces of one answer, then its `result`. Closed or dropped early, it cancels the request.

    Made by MultiLoRAClient.
    """

    def __init__(
        self,
        client: MultiLoRAClient,
        request: service_pb2.ModelInferRequest,
        timeout: float | None,
    ) -> None:
        self.request_id: str = request.id
        self._client = client
        self._reply = Reply()
        seconds = client._timeout if timeout is None else timeout
        self._call = client._stub.ModelStreamInfer(iter([request]), timeout=seconds)
        client._running.add(self.request_id)

    @property
    def result(self) -> Generation:
        """The whole answer; RuntimeError before the stream was read to its end."""
        return self._reply.result()

    def __next__(self) -> str:
        try:
            while not (piece := self._reply.push(next(self._call))):
                pass
            return piece
        except StopIteration:
            self._ended()
            self._reply.check_complete()
            raise
        except grpc.RpcError as error:
            call = cast(grpc.Call, error)
            if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self.close()
            self._ended()
            raise from_status(call.code(), call.details(), self._client.url) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel the request unless it has ended. Safe to repeat, and from another thread."""
        if self._ended() and not self._reply.complete:
            self._call.cancel()
            self._client.cancel(self.request_id)

    def _ended(self) -> bool:
        """Whether this is the first that is heard of the end."""
        try:
            self._client._running.remove(self.request_id)
        except KeyError:
            return False
        return True

    def __enter__(self) -> "TextStream":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

"""The asyncio client, which says what both clients do: client.py shows the same, blocking.

Law: nothing is awaited here but what the channel and the stub return, and these coroutines.
"""

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Unpack, cast

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from multilora_api.tensors import ADMIN_MODEL, ENGINE_MODEL
from multilora_client.adapters.client import AsyncAdapters
from multilora_client.connection import Endpoint
from multilora_client.errors import MultiLoRAError, from_status
from multilora_client.protocol import (
    CANCEL_SECONDS,
    Generation,
    GenerationReply,
    Message,
    generate_request,
    stop_request,
)
from multilora_client.sampling import Sampling

# A closed channel raises UsageError in grpc.aio, ValueError in the blocking gRPC.
_NOBODY_ANSWERS = (grpc.RpcError, grpc.aio.UsageError, ValueError)


class AsyncMultiLoRAClient:
    """See MultiLoRAClient. Make it inside the running event loop."""

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout: float | None = None,
        model: str = ENGINE_MODEL,
        engine: str = ENGINE_MODEL,
        admin: str = ADMIN_MODEL,
        admin_key: str = "",
    ) -> None:
        endpoint = Endpoint.parse(url)
        self.url = endpoint.address
        self._timeout = timeout
        self._model = model
        self._engine = engine
        self._channel, self._stub = self._connect(endpoint)
        self.adapters = AsyncAdapters(self._stub, admin, self.url, timeout, admin_key)
        self._running: set[str] = set()  # ids of the requests that AsyncTextStreams are reading

    def _connect(self, endpoint: Endpoint) -> tuple[Any, Any]:
        """(channel, stub)"""
        channel = endpoint.aio_channel()
        return channel, service_pb2_grpc.GRPCInferenceServiceStub(channel)

    async def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        adapter_id: str = "",
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """The whole answer to a text, or to the messages of a chat."""
        request = generate_request(self._model, prompt, adapter_id, False, sampling)
        async with AsyncTextStream(self, request, timeout) as stream:
            async for _ in stream:
                pass
            return stream.result

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        adapter_id: str = "",
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> "AsyncTextStream":
        """The answer in pieces as they are generated."""
        request = generate_request(self._model, prompt, adapter_id, True, sampling)
        return AsyncTextStream(self, request, timeout)

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        adapter_id: str = "",
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """The assistant's next turn, in the base model's chat template."""
        prompt = list(messages)
        return await self.generate(prompt, adapter_id=adapter_id, timeout=timeout, **sampling)

    async def cancel(self, request_id: str) -> None:
        """Ask the server to stop a running request; does nothing when there is none, or no server.

        Breaking off a call is not enough: an ensemble does not pass that on to its steps.
        """
        await self._stop([request_id])

    async def close(self) -> None:
        await self._stop(list(self._running))
        await self._channel.close()

    async def _stop(self, request_ids: list[str]) -> None:
        """Send every stop before the first answer is awaited: all share CANCEL_SECONDS."""
        requests = [stop_request(self._engine, request_id) for request_id in request_ids]
        with suppress(*_NOBODY_ANSWERS):
            calls = [
                self._stub.ModelStreamInfer(iter([request]), timeout=CANCEL_SECONDS)
                for request in requests
            ]
            for call in calls:
                with suppress(grpc.RpcError):
                    async for _ in call:
                        pass

    async def __aenter__(self) -> "AsyncMultiLoRAClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class AsyncTextStream(AsyncIterator[str]):
    """The pieces of one answer, then its `result`. Made by AsyncMultiLoRAClient.

    Leaving early cancels the request: use `async with`, or await `close`.
    """

    def __init__(
        self,
        client: AsyncMultiLoRAClient,
        request: service_pb2.ModelInferRequest,
        timeout: float | None,
    ) -> None:
        self.request_id: str = request.id
        self._client = client
        self._reply = GenerationReply()
        seconds = client._timeout if timeout is None else timeout
        self._call = client._stub.ModelStreamInfer(iter([request]), timeout=seconds)
        self._responses = aiter(self._call)
        client._running.add(self.request_id)

    @property
    def result(self) -> Generation:
        """The whole answer; RuntimeError before the stream was read to its end."""
        return self._reply.result()

    async def __anext__(self) -> str:
        try:
            while not (piece := self._reply.push(await anext(self._responses))):
                pass
            return piece
        except StopAsyncIteration:
            self._ended()
            self._reply.check_complete()
            raise
        except grpc.RpcError as error:
            call = cast(grpc.Call, error)
            if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                await self.close()
            self._ended()
            raise from_status(call.code(), call.details(), self._client.url) from None
        except MultiLoRAError:  # the server's last word
            self._ended()
            await self._read_out()
            raise
        except BaseException:
            await self.close()
            raise

    async def _read_out(self) -> None:
        """To the end of a stream in which nothing more is said: where it is broken off just then,
        Triton may keep the request, and then takes 30 s to stop."""
        with suppress(grpc.RpcError):
            async for _ in self._responses:
                pass

    async def close(self) -> None:
        """Cancel the request unless it has ended. Safe to repeat."""
        if self._ended() and not self._reply.complete:
            self._call.cancel()
            await self._client.cancel(self.request_id)

    def _ended(self) -> bool:
        """Note that the request has ended; whether this is news. Threads may call it at once."""
        try:
            self._client._running.remove(self.request_id)
        except KeyError:
            return False
        return True

    async def __aenter__(self) -> "AsyncTextStream":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

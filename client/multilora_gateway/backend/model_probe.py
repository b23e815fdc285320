"""Whether the process of a Triton model lives: its Triton server says "ready" of a dead one, too.

Law: a living one answers at once, whatever else it does.
"""

import uuid
from typing import Any

import grpc.aio

from multilora_client.adapters.messages import admin_request, failure
from multilora_client.errors import InvalidRequest, from_status
from multilora_client.protocol import GenerationReply, stop_request
from multilora_gateway.backend.messages import ADAPTERS, ENGINE


class ModelProbe:
    """`stub` is that of a gRPC connection to `url`."""

    def __init__(self, stub: Any, url: str) -> None:
        self._stub = stub
        self._url = url

    async def ask(self, model: str, seconds: float) -> None:
        """Raises MultiLoRAError unless ENGINE or ADAPTERS answers within `seconds`."""
        if model == ENGINE:  # let it stop what does not run
            await self.stop(uuid.uuid4().hex, seconds)
        else:
            await self._adapters(seconds)

    async def stop(self, request_id: str, seconds: float) -> None:
        """Let the engine end a request; raises MultiLoRAError unless it says yes in time."""
        answer = GenerationReply()
        request = stop_request(ENGINE, request_id)
        try:
            async for message in self._stub.ModelStreamInfer(iter([request]), timeout=seconds):
                answer.push(message)
        except grpc.aio.AioRpcError as error:
            raise from_status(error.code(), error.details(), self._url) from None
        answer.check_complete()

    async def _adapters(self, seconds: float) -> None:
        """Ask of no adapter: it refuses that itself, before the threads which may all be waiting,
        and without the engine. Triton's metrics do not count it as a failure."""
        try:
            await self._stub.ModelInfer(admin_request(ADAPTERS, "info", {}), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            refusal = failure(error.code(), error.details(), self._url)
            if not isinstance(refusal, InvalidRequest):
                raise refusal from None

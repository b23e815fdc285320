"""The shared stream of a gateway: one gRPC call through which the engine says what it has to say of
all its generations, one message a step.

A message costs the Triton server and its readers far more than the token in it: so tokens come one
by one while many streams run.
"""

import asyncio
import time
import uuid
from typing import Any

import grpc.aio

from multilora_api.tensors import ENGINE_MODEL, OPEN_SHARED_STREAM
from multilora_client.errors import ServerLost, from_message, from_status
from multilora_client.protocol import new_request
from multilora_client.tensors import add_input, outputs
from multilora_gateway.backend.messages import columns, delta_of
from multilora_gateway.backend.stream import EngineStream, end_call
from multilora_gateway.backend.watch import EngineWatch, ModelProbe

_STOP_SECONDS = 2.0


class SharedStream:
    """Make a SharedStream inside the running event loop, await `opened`, `join` it. `stub` is of a
    connection to `url`. It `is_over` once it broke, or the engine ended it: when nobody joins."""

    def __init__(self, stub: Any, url: str, watch: EngineWatch, probe: ModelProbe) -> None:
        self.name = uuid.uuid4().hex
        self.is_over = False
        self._error: Exception | None = None  # that broke it
        self._url = url
        self._probe = probe
        self._streams: dict[str, tuple[EngineStream, int | None]] = {}
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        request = new_request(ENGINE_MODEL, self.name)
        add_input(request, OPEN_SHARED_STREAM.name, "BOOL", True)
        self._call = stub.ModelStreamInfer(iter([request]))
        self._reader = asyncio.create_task(self._read(watch))

    async def opened(self) -> None:
        """Returns once requests may name it, or it ended in order; raises what broke it."""
        await asyncio.shield(self._opened)
        if self._error:
            raise self._error

    def join(self, request_id: str, stream: EngineStream, logprobs: int | None) -> None:
        """Give `stream` the deltas of a request; `logprobs` is how many it asks for."""
        self._streams[request_id] = stream, logprobs

    def leave(self, request_id: str) -> None:
        self._streams.pop(request_id, None)

    def cancel(self) -> None:
        """For a server that is gone."""
        self._call.cancel()

    async def close(self) -> None:
        await end_call(self._call, self._reader, lambda: self._probe.stop(self.name, _STOP_SECONDS))

    async def _read(self, watch: EngineWatch) -> None:
        error: Exception | None = None
        try:
            with watch.over(self) as watched:
                async for message in self._call:  # to its end: see EngineStream
                    watched.heard = time.monotonic()
                    try:
                        self._hand_out(message)
                    except Exception as failure:  # whoever waits is told, whatever it is
                        error = failure
                        self._end(error)
        except grpc.aio.AioRpcError as failure:
            error = from_status(failure.code(), failure.details(), self._url)
        except asyncio.CancelledError:
            error = ServerLost("UNAVAILABLE", f"the connection to {self._url} is closed; ask again")
            raise
        except Exception as failure:  # of the watch, say
            error = failure
        finally:
            self._end(error)

    def _hand_out(self, message: Any) -> None:
        if message.error_message:
            raise from_message(message.error_message)
        if self.is_over:
            return
        if not self._opened.done():
            self._opened.set_result(None)
        values = outputs(message.infer_response)
        for request_id, column, ids in columns(values):
            if found := self._streams.get(request_id):
                stream, logprobs = found
                stream.push(delta_of(values, column, ids, logprobs))

    def _end(self, error: Exception | None) -> None:
        if self.is_over:
            return
        self.is_over, self._error = True, error
        if not self._opened.done():
            ended = ServerLost("UNAVAILABLE", "the engine ended a stream as it opened; ask again")
            self._opened.set_exception(error or ended)
            self._opened.exception()  # there may be nobody who waits
        for stream, _ in self._streams.values():
            if error:
                stream.fail(error)
            else:  # in order: of requests that are on their way to it, their own calls tell
                stream.end()

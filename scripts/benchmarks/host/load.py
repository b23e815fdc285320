"""Streams over gRPC, read as cheaply as a client can: when messages came, with how many tokens."""

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc import service_pb2_grpc

from multilora_client.connection import Endpoint
from multilora_gateway.backend.messages import GenerationRequest, engine_request
from multilora_gateway.backend.shared_stream import SharedStream
from multilora_gateway.backend.stream import EngineStream
from multilora_gateway.backend.watch import EngineWatch, ModelProbe

ADAPTERS = ("sql", "upper", "reverse", "digits", "json", "rot13", "emoji")
PROMPT = [65] * 32  # token ids
_READERS = 2  # processes


@dataclass
class StreamTimes:
    """Of one stream: time.monotonic() of each message, and how many tokens it brought."""

    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def add(self, tokens: int) -> None:
        """A message has come."""
        if tokens:
            self.times.append(time.monotonic())
            self.tokens.append(tokens)


def read(address: str, streams: int, tokens: int, shared: bool = True) -> list[StreamTimes]:
    """`streams` at once, of `tokens` each, by turns from all adapters: through shared streams, as
    gateways read them, or each on its own."""
    shares = [streams // _READERS + (index < streams % _READERS) for index in range(_READERS)]
    work = [(address, share, tokens, shared) for share in shares if share]
    with multiprocessing.get_context("spawn").Pool(len(work)) as pool:
        return [reading for part in pool.starmap(_read, work) for reading in part]


def _read(address: str, streams: int, tokens: int, shared: bool) -> list[StreamTimes]:
    return asyncio.run(_gather(address, streams, tokens, _shared if shared else _own))


async def _gather(
    address: str,
    streams: int,
    tokens: int,
    way: Callable[..., Coroutine[Any, Any, list[StreamTimes]]],
) -> list[StreamTimes]:
    channel = Endpoint.parse(address).aio_channel()
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    sampling = {"max_tokens": tokens, "ignore_eos": True}
    names = (ADAPTERS[index % len(ADAPTERS)] for index in range(streams))
    readings = await way(stub, [GenerationRequest(PROMPT, name, sampling) for name in names])
    await channel.close()
    return readings


async def _own(stub: Any, calls: list[GenerationRequest]) -> list[StreamTimes]:
    async def one(call: GenerationRequest) -> StreamTimes:
        reading = StreamTimes()
        async for message in stub.ModelStreamInfer(iter([engine_request(call)])):
            if message.error_message:
                raise RuntimeError(message.error_message)
            ids = next(o for o in message.infer_response.outputs if o.name == "output_ids")
            reading.add(ids.shape[1])
        return reading

    return await asyncio.gather(*map(one, calls))


async def _shared(stub: Any, calls: list[GenerationRequest]) -> list[StreamTimes]:
    probe = ModelProbe(stub, "")
    watch = EngineWatch(probe.ask)
    shared = SharedStream(stub, "", watch, probe)
    await shared.opened()

    async def one(call: GenerationRequest) -> StreamTimes:
        reading, request = StreamTimes(), engine_request(call, shared.name)
        stream = EngineStream(
            stub.ModelStreamInfer(iter([request])), lambda: probe.stop(request.id, 1)
        )
        shared.join(request.id, stream, None)
        async for delta in stream:
            reading.add(len(delta.tokens))
        shared.leave(request.id)
        if not stream.complete:
            raise RuntimeError("an answer has no end")
        return reading

    readings = await asyncio.gather(*map(one, calls))
    await asyncio.gather(shared.close(), watch.close())
    return readings

"""Streams over gRPC, read as cheaply as a client can: when messages came, with how many tokens."""

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

import asyncio
import multiprocessing
import time
from dataclasses import dataclass, field

from tritonclient.grpc import service_pb2_grpc

from multilora_client.connection import Endpoint
from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.messages import GenerationRequest, engine_request

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
    sampling = {"max_tokens": tokens, "ignore_eos": True}
    names = (ADAPTERS[index % len(ADAPTERS)] for index in range(streams))
    calls = [GenerationRequest(PROMPT, name, sampling) for name in names]
    return asyncio.run(_shared(address, calls) if shared else _own(address, calls))


async def _own(address: str, calls: list[GenerationRequest]) -> list[StreamTimes]:
    channel = Endpoint.parse(address).aio_channel()
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    async def one(call: GenerationRequest) -> StreamTimes:
        reading = StreamTimes()
        async for message in stub.ModelStreamInfer(iter([engine_request(call)])):
            if message.error_message:
                raise RuntimeError(message.error_message)
            ids = next(o for o in message.infer_response.outputs if o.name == "output_ids")
            reading.add(ids.shape[1])
        return reading

    readings = await asyncio.gather(*map(one, calls))
    await channel.close()
    return readings


async def _shared(address: str, calls: list[GenerationRequest]) -> list[StreamTimes]:
    backend = Backend(address)

    async def one(call: GenerationRequest) -> StreamTimes:
        reading = StreamTimes()
        async for delta in backend.generate(call):
            reading.add(len(delta.tokens))
        return reading

    readings = await asyncio.gather(*map(one, calls))
    await backend.close()
    return readings

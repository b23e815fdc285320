"""Streams over gRPC, read as cheaply as a client can: when messages came, with how many tokens."""

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

import asyncio
import multiprocessing
import time
from dataclasses import dataclass, field

from tritonclient.grpc import service_pb2_grpc

from multilora_client.connection import Endpoint
from multilora_gateway.backend.messages import GenerationRequest, engine_request

ADAPTERS = ("sql", "upper", "reverse", "digits", "json", "rot13", "emoji")
PROMPT = [65] * 32  # token ids
_READERS = 2  # processes


@dataclass
class StreamTimes:
    """Of one stream: time.monotonic() of each message, and how many tokens it brought."""

    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def read(address: str, streams: int, tokens: int) -> list[StreamTimes]:
    """`streams` at once, of `tokens` each, by turns from all adapters."""
    shares = [streams // _READERS + (index < streams % _READERS) for index in range(_READERS)]
    work = [(address, share, tokens) for share in shares if share]
    with multiprocessing.get_context("spawn").Pool(len(work)) as pool:
        return [reading for part in pool.starmap(_read, work) for reading in part]


def _read(address: str, streams: int, tokens: int) -> list[StreamTimes]:
    return asyncio.run(_gather(address, streams, tokens))


async def _gather(address: str, streams: int, tokens: int) -> list[StreamTimes]:
    channel = Endpoint.parse(address).aio_channel()
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    sampling = {"max_tokens": tokens, "ignore_eos": True}

    async def one(index: int) -> StreamTimes:
        call = GenerationRequest(PROMPT, ADAPTERS[index % len(ADAPTERS)], sampling)
        reading = StreamTimes()
        async for message in stub.ModelStreamInfer(iter([engine_request(call)])):
            if message.error_message:
                raise RuntimeError(message.error_message)
            ids = next(o for o in message.infer_response.outputs if o.name == "output_ids")
            if ids.shape[1]:
                reading.times.append(time.monotonic())
                reading.tokens.append(ids.shape[1])
        return reading

    readings = await asyncio.gather(*(one(index) for index in range(streams)))
    await channel.close()
    return list(readings)

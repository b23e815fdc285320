"""What the gateway costs: its streams beside direct gRPC streams, in turns on one server.

Prints, as a median over rounds and with its spread: tokens per second of 64 concurrent streams
through the gateway ÷ the same through gRPC, and the seconds the gateway adds to the first token of
a single stream. The load runs in a process of its own and reads as cheaply as it can.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tritonclient.grpc import service_pb2_grpc

from launcher.triton.server import TritonServer
from multilora_client.connection import Endpoint
from multilora_client.tensors import outputs
from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.messages import GenerationRequest, engine_request

TGI = "/generate_stream"  # every event holds a logprob
OPENAI = "/v1/completions"
SETTINGS = {"MODEL_ID": "", "LORA_ADAPTERS": "", "THREADS": "1", "MAX_RUNNING_REQUESTS": "64"}


@dataclass(frozen=True)
class StreamLoad:
    """What one round asks for: `streams` at once of `tokens` each, by turns from ADAPTERS."""

    grpc: str
    http: str
    streams: int
    tokens: int
    path: str


@dataclass(frozen=True)
class RoundTimes:
    """Seconds of a round until the last token, and until the first of each stream."""

    seconds: float
    first: list[float]
    tokens: int


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model-id", default="", help="a larger base model; default the demo")
    flags = parser.parse_args()
    with TritonServer({**SETTINGS, "MODEL_ID": flags.model_id}) as server:
        server.wait_ready()
        command = [sys.executable, "-m", "multilora_gateway", "--port", "0"]
        command += ["--triton-url", server.grpc_address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as gateway:
            assert gateway.stdout is not None
            http = gateway.stdout.readline().removeprefix("ready: http://").strip()
            try:
                report(server.grpc_address, http, flags)
            finally:
                gateway.terminate()
    return 0


def report(grpc: str, http: str, flags: argparse.Namespace) -> None:
    for path in (OPENAI, TGI):
        many = StreamLoad(grpc, http, flags.streams, flags.tokens, path)
        single = StreamLoad(grpc, http, 1, 4, path)
        for load in (many, single):  # warm caches and connections
            rounds_of(load, 1)
        rates = [
            (theirs.tokens / theirs.seconds, ours.tokens / ours.seconds)
            for theirs, ours in rounds_of(many, flags.rounds)
        ]
        ratios = sorted(ours / theirs for theirs, ours in rates)
        print(
            f"{path}: {flags.streams} streams of {flags.tokens} tokens, {flags.rounds} pairs: "
            f"gRPC {statistics.median(t for t, _ in rates):.0f} tokens/s, "
            f"gateway {statistics.median(o for _, o in rates):.0f} tokens/s; "
            f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )
        pairs = rounds_of(single, 10 * flags.rounds)
        added = sorted(1000 * (ours.first[0] - theirs.first[0]) for theirs, ours in pairs)
        print(
            f"{path}: 1 stream, {len(pairs)} pairs: first token by gRPC after "
            f"{1000 * statistics.median(t.first[0] for t, _ in pairs):.2f} ms, the gateway adds "
            f"{statistics.median(added):.2f} ms "
            f"({added[len(added) // 10]:.2f} to {added[-1 - len(added) // 10]:.2f}, middle 80 %)"
        )


def rounds_of(load: StreamLoad, count: int) -> list[tuple[RoundTimes, RoundTimes]]:
    """Pairs (gRPC, gateway); which goes first alternates."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_rounds, (load, count))


def _rounds(load: StreamLoad, count: int) -> list[tuple[RoundTimes, RoundTimes]]:
    return asyncio.run(_pairs(load, count))


async def _pairs(load: StreamLoad, count: int) -> list[tuple[RoundTimes, RoundTimes]]:
    backend = Backend(load.grpc)
    ids = (await backend.base()).tokenizer.encode("hello world")
    await backend.close()
    channel = Endpoint.parse(load.grpc).aio_channel()
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    sampling = {"max_tokens": load.tokens, "ignore_eos": True}
    if load.path == TGI:
        sampling["logprobs"] = 0  # the same tensors as the gateway asks for

    async def direct(index: int, began: float) -> float:
        call = GenerationRequest(ids, ADAPTERS[index % len(ADAPTERS)], sampling)
        first = 0.0
        async for message in stub.ModelStreamInfer(iter([engine_request(call)])):
            if message.error_message:
                raise RuntimeError(message.error_message)
            outputs(message.infer_response)  # a client reads its tokens
            first = first or time.perf_counter() - began
        return first

    async def through(index: int, began: float) -> float:
        return await _http(load, ADAPTERS[index % len(ADAPTERS)], began)

    pairs: list[tuple[RoundTimes, RoundTimes]] = []
    for number in range(count):
        order = (direct, through) if number % 2 else (through, direct)
        done = {way: await _measure(way, load) for way in order}
        pairs.append((done[direct], done[through]))
    await channel.close()
    return pairs


async def _measure(way: Callable[[int, float], Awaitable[float]], load: StreamLoad) -> RoundTimes:
    began = time.perf_counter()
    first = await asyncio.gather(*(way(index, began) for index in range(load.streams)))
    return RoundTimes(time.perf_counter() - began, list(first), load.streams * load.tokens)


async def _http(load: StreamLoad, adapter_id: str, began: float) -> float:
    body = json.dumps(_body(load, adapter_id)).encode()
    host, port = load.http.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {load.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    first, events = 0.0, 0
    while chunk := await reader.read(65536):
        events += chunk.count(b"data:")
        if events and not first:
            first = time.perf_counter() - began
    writer.close()
    assert events >= load.tokens // 4, f"{events} events for {load.tokens} tokens"
    return first


def _body(load: StreamLoad, adapter_id: str) -> dict[str, object]:
    if load.path == TGI:
        limits = {"max_new_tokens": load.tokens, "ignore_eos_token": True}
        return {"inputs": "hello world", "parameters": {"adapter_id": adapter_id, **limits}}
    limits = {"max_tokens": load.tokens, "ignore_eos": True, "temperature": 0, "stream": True}
    return {"model": adapter_id or "tgi", "prompt": "hello world", **limits}


ADAPTERS = ("", "sql", "upper", "reverse", "digits", "json", "rot13", "emoji")

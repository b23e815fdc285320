"""Coroutines that block where they would wait: a blocking client made of the asyncio one.

The asyncio client awaits nothing but what its channel and stub return. Over BlockingChannel and
BlockingStub these awaitables block and never suspend, so that `run` needs no event loop, works in
any thread, and lets KeyboardInterrupt rise inside the coroutine.
"""

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

P = ParamSpec("P")
R = TypeVar("R")


def run(coroutine: Coroutine[Any, Any, R]) -> R:
    """The result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise RuntimeError(f"{coroutine} waits for an event loop; only a blocking stub may be awaited")


def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], R]:
    """A method of a blocking class: `method` of the asyncio object that it keeps as `_asyncio`.

    Without functools.wraps, whose `__wrapped__` would make `call` pass for a coroutine function.
    """

    def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        return run(method(self._asyncio, *args, **kwargs))

    call.__name__, call.__doc__ = method.__name__, method.__doc__
    call.__dict__["__signature__"] = inspect.signature(method)
    return call


def parameters_of(
    method: Callable[Concatenate[Any, P], object],
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """Decorates a method that hands all its arguments on to `method`, and so has its parameters."""

    def decorate(call: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        returned = inspect.signature(call).return_annotation
        signature = inspect.signature(method).replace(return_annotation=returned)
        call.__dict__["__signature__"] = signature
        return call

    return decorate


class BlockingChannel:
    """A channel that is closed as one of grpc.aio is."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    async def close(self) -> None:
        self._channel.close()


class BlockingStub:
    """The calls of GRPCInferenceServiceStub that clients need, in the form that grpc.aio has."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def ModelStreamInfer(
        self, requests: Iterator[service_pb2.ModelInferRequest], timeout: float | None
    ) -> "BlockingCall":
        return BlockingCall(self._stub.ModelStreamInfer(requests, timeout=timeout))


class BlockingCall(AsyncIterator[service_pb2.ModelStreamInferResponse]):
    """A running call of a stream. Cancelling is safe from another thread.

    A thread reads the call: a KeyboardInterrupt that rose while gRPC takes a lock would leave it
    locked for ever, whereas SimpleQueue may be interrupted anywhere.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._responses: SimpleQueue[Any] = SimpleQueue()
        Thread(target=_read, args=(call, self._responses), daemon=True).start()

    async def __anext__(self) -> service_pb2.ModelStreamInferResponse:
        response = self._responses.get()
        if isinstance(response, BaseException):
            self._responses.put(response)  # for whoever asks again
            raise response
        return response

    def cancel(self) -> None:
        self._call.cancel()


def _read(call: Any, responses: SimpleQueue[Any]) -> None:
    """Hand on each response, then what ended the call."""
    try:
        for response in call:
            responses.put(response)
    except BaseException as error:  # to be raised where the responses are awaited
        responses.put(error)
    else:
        responses.put(StopAsyncIteration())

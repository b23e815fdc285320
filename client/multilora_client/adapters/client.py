"""Administration of a server's adapters: `adapters` of both clients, asyncio and blocking."""

from collections.abc import Mapping
from typing import Any, cast

import grpc

from multilora_client.adapters.messages import (
    AdapterInfo,
    AdapterMemory,
    AdminReply,
    Unloaded,
    adapter_infos,
    adapter_memory,
    admin_request,
    deadline,
    failure,
    merge_text,
)
from multilora_client.blocking import blocking
from multilora_client.tensors import Scalar


class AsyncAdapters:
    """See Adapters; every method is awaited. Made by AsyncMultiLoRAClient."""

    def __init__(
        self, stub: Any, model: str, url: str, timeout: float | None, key: str = ""
    ) -> None:
        self._stub = stub
        self._model = model
        self._url = url
        self._timeout = timeout
        self._key = key

    async def list(self) -> list[AdapterInfo]:
        """Every adapter that is registered, in the adapters directory, or in memory."""
        return adapter_infos(await self.listed())

    async def listed(self) -> dict[str, Any]:
        """The server's answer to `list` as JSON, in which no adapter is left for a `next` one."""
        answer = await self.ask("list")
        rest = answer
        entries = {}
        while after := rest.get("next"):
            entries.update((entry["id"], entry) for entry in rest["adapters"])
            rest = await self.ask("list", after=after)
        entries.update((entry["id"], entry) for entry in rest["adapters"])
        return {**answer, "adapters": [*entries.values()], "next": ""}

    async def memory(self) -> AdapterMemory:
        """What the adapters occupy on the device and in host memory."""
        return adapter_memory(await self.ask("list"))

    async def info(self, adapter_id: str) -> AdapterInfo:
        return AdapterInfo.from_json(await self.ask("info", adapter_id=adapter_id))

    async def load(
        self,
        adapter_id: str,
        source: str = "",
        revision: str = "",
        timeout: float | None = None,
        adapter_token: str = "",
    ) -> AdapterInfo:
        """Bring an adapter into memory, again if its files have changed; returns once it is there.

        `source` makes a new name for a folder, a Hub id or a URL that the server allows. After
        `timeout` the load goes on without this call.
        """
        inputs = {"source": source, "revision": revision, "adapter_token": adapter_token}
        return AdapterInfo.from_json(
            await self.ask("load", timeout, adapter_id=adapter_id, **inputs)
        )

    async def unload(
        self, adapter_id: str, cancel: bool = False, timeout: float | None = None
    ) -> Unloaded:
        """Free its memory once the requests that run with it have ended; `cancel` ends them."""
        return Unloaded.from_json(
            await self.ask("unload", timeout, adapter_id=adapter_id, cancel=cancel)
        )

    async def pin(self, adapter_id: str, timeout: float | None = None) -> AdapterInfo:
        """Keep it in memory, loading it first if need be."""
        return AdapterInfo.from_json(await self.ask("pin", timeout, adapter_id=adapter_id))

    async def unpin(self, adapter_id: str) -> AdapterInfo:
        return AdapterInfo.from_json(await self.ask("unpin", adapter_id=adapter_id))

    async def merge(
        self,
        parts: Mapping[str, float],
        strategy: str = "",
        density: float | None = None,
        majority_sign_method: str = "",
        adapter_token: str = "",
        timeout: float | None = None,
    ) -> AdapterInfo:
        """One adapter of several, each with its weight, as PEFT's add_weighted_adapter makes it.

        `strategy` is "linear" (default), "ties", "dare_linear" or "dare_ties". Requests name the
        merge by its id; the same merge is made once. `adapter_token` opens private repositories.
        """
        merge = merge_text(parts, strategy, density, majority_sign_method)
        return AdapterInfo.from_json(
            await self.ask("merge", timeout, merge=merge, adapter_token=adapter_token)
        )

    async def ask(
        self, action: str, timeout: float | None = None, **inputs: Scalar | None
    ) -> dict[str, Any]:
        """The server's answer to any action, as the JSON object that it is."""
        seconds = self._timeout if timeout is None else timeout
        given = {**inputs, "timeout": seconds, "admin_key": self._key}
        request = admin_request(self._model, action, given)
        reply = AdminReply()
        try:
            async for message in self._stub.ModelStreamInfer(
                iter([request]), timeout=deadline(seconds)
            ):
                reply.push(message)
        except grpc.RpcError as error:
            call = cast(grpc.Call, error)
            raise failure(call.code(), call.details(), self._url) from None
        return reply.answer()


class Adapters:
    """Lists, loads, unloads and pins adapters. Made by MultiLoRAClient.

    `timeout` is in seconds; None takes the client's own, and without one the server decides. Every
    method raises MultiLoRAError or one of its subclasses.
    """

    def __init__(self, adapters: AsyncAdapters) -> None:
        self._asyncio = adapters

    list = blocking(AsyncAdapters.list)
    listed = blocking(AsyncAdapters.listed)
    memory = blocking(AsyncAdapters.memory)
    info = blocking(AsyncAdapters.info)
    load = blocking(AsyncAdapters.load)
    unload = blocking(AsyncAdapters.unload)
    pin = blocking(AsyncAdapters.pin)
    unpin = blocking(AsyncAdapters.unpin)
    merge = blocking(AsyncAdapters.merge)
    ask = blocking(AsyncAdapters.ask)

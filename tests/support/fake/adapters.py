"""FakeTriton with the Triton model `adapters`.

What it does is chosen by the request's `adapter_id`: a code in capitals fails with it, "silent"
answers nothing, "garbled" no JSON, "allowed" is what only a pattern allows; any other
is answered as the server does.
"""

import json
import threading
from collections.abc import Iterator
from typing import Any

from tritonclient.grpc import service_pb2

from multilora_api.admin import MOST_LISTED
from multilora_client.tensors import Scalar, add_input
from multilora_text.chat_template import NO_TEMPLATES
from support.fake.triton import FakeTriton

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

MEMORY = {
    "device_pages_used": 3,
    "device_pages": 64,
    "page_bytes": 98304,
    "host_bytes_used": 2**21,
    "host_bytes": 2**32,
}


def entry(adapter_id: str, **changes: Any) -> dict[str, Any]:
    """An adapter as a newer server tells of it: `colour` is a key that no client knows."""
    return {
        "id": adapter_id,
        "source": f"/adapters/{adapter_id}",
        "revision": "",
        "origin": "registered",
        "digest": "0123abcd",
        "rank": 16,
        "modules": ["q_proj", "v_proj"],
        "bytes": 1234567,
        "pages": 1,
        "tier": "device",
        "pinned": False,
        "running": 0,
        "waiting": 0,
        "requests": 7,
        "tokens": 640,
        "last_used": 1_700_000_000.5,
        "state": "ready",
        "error": None,
        "error_code": None,
        "colour": "blue",
        **changes,
    }


UNREAD = dict.fromkeys(("digest", "rank", "modules", "bytes", "pages", "last_used"))
ENTRIES = [
    entry("zeta", pinned=True, running=2, waiting=1),
    entry("org/name", source="org/name", revision="v2", origin="on demand", tier="host"),
    entry("bad", tier="disk", state="failed", error="q_proj holds NaN;\ntrain it", **UNREAD),
    entry("alpha", rank=128, pages=8),
]


class FakeAdapters(FakeTriton):
    """`received` holds the actions too. `base` is what it describes, `on_disk` how many adapters
    `disk/00000`, … it has beside the ENTRIES."""

    models = (*FakeTriton.models, "adapters")

    def __init__(self, port: int = 0, base: dict[str, Any] | None = None, on_disk: int = 0) -> None:
        self._closed = threading.Event()
        self._on_disk = on_disk
        self._base = base or {}
        super().__init__(port)

    def close(self) -> None:
        self._closed.set()
        super().close()

    def answer(
        self, model: str, request_id: str, inputs: dict[str, list[Scalar]]
    ) -> Iterator[service_pb2.ModelStreamInferResponse]:
        adapter_id = str(inputs.get("adapter_id", [""])[0])
        if model != "adapters" or adapter_id.isupper():
            yield from super().answer(model, request_id, inputs)
            return
        if adapter_id == "silent":
            self._closed.wait(10)
        action = str(inputs["action"][0])
        if action == "describe":
            result = self._base
        elif action == "list":
            result = _listed(str(inputs.get("after", [""])[0]), self._on_disk)
        else:
            result = _result(action, adapter_id, inputs)
        yield _response("{" if adapter_id == "garbled" else json.dumps(result))


def _result(action: str, adapter_id: str, inputs: dict[str, list[Scalar]]) -> dict[str, Any]:
    if action == "template":
        return NO_TEMPLATES.as_json()
    if action == "unload":
        return {"id": adapter_id, "freed_pages": 2, "freed_bytes": 1234567}
    if adapter_id == "allowed":
        return entry(adapter_id, origin="on demand", tier="disk", **UNREAD)
    source = str(inputs.get("source", ["/adapters"])[0])
    return entry(adapter_id, source=source, pinned=action == "pin")


def _listed(after: str, on_disk: int) -> dict[str, Any]:
    """Without `after` the ENTRIES too, and an adapter that a later part tells of again."""
    first = int(after.removeprefix("disk/")) + 1 if after else 0
    names = [f"disk/{number:05}" for number in range(first, min(first + MOST_LISTED, on_disk))]
    told = [entry(name, tier="disk", **UNREAD) for name in names]
    more = first + len(names) < on_disk
    loaded = [entry(f"disk/{on_disk - 1:05}")] if more else []
    return {
        "adapters": told if after else [*ENTRIES, *told, *loaded],
        "next": names[-1] if more else "",
        "memory": MEMORY,
        "colour": "blue",
    }


def _response(result: str) -> service_pb2.ModelStreamInferResponse:
    request = service_pb2.ModelInferRequest()  # lends its tensor to the response
    add_input(request, "result", "BYTES", result)
    response = service_pb2.ModelInferResponse(raw_output_contents=request.raw_input_contents)
    response.outputs.add(name="result", datatype="BYTES", shape=[1, 1])
    response.parameters["triton_final_response"].bool_param = True
    return service_pb2.ModelStreamInferResponse(infer_response=response)

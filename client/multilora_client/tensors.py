"""Python values to and from KServe tensors, for the few datatypes that the model speaks.

A value is a scalar or a list of them; it travels as a tensor of shape [1, n] in raw form: little
endian, BYTES elements prefixed by their length as uint32 (the KServe v2 "raw" representation).
"""

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

import struct
from collections.abc import Iterable, Sequence

from tritonclient.grpc import service_pb2

from multilora_client.errors import invalid

Scalar = str | bool | int | float
Value = Scalar | Sequence[Scalar]
_FORMATS = {"BOOL": "?", "INT32": "i", "UINT32": "I", "UINT64": "Q", "FP32": "f"}


def add_input(
    request: service_pb2.ModelInferRequest, name: str, datatype: str, value: Value
) -> None:
    """Append one input; raises InvalidRequest naming it when the value does not fit."""
    elements = list(value) if isinstance(value, list | tuple) else [value]
    request.inputs.add(name=name, datatype=datatype, shape=[1, len(elements)])
    request.raw_input_contents.append(_encode(name, datatype, elements))


def outputs(response: service_pb2.ModelInferResponse) -> dict[str, list[Scalar]]:
    """Each output's elements, flat, by name."""
    return {
        output.name: decode(output.datatype, raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def _encode(name: str, datatype: str, elements: Sequence[object]) -> bytes:
    if datatype == "BYTES":
        if not all(isinstance(element, str) for element in elements):
            raise invalid(f"{name} must be text; got {elements}")
        return b"".join(_prefixed(str(element).encode()) for element in elements)
    if datatype != "BOOL" and any(isinstance(element, bool) for element in elements):
        raise invalid(f"{name} must be a number; got {elements}")
    try:
        return struct.pack(f"<{len(elements)}{_FORMATS[datatype]}", *elements)
    except (struct.error, OverflowError):
        shown = elements[0] if len(elements) == 1 else elements
        raise invalid(f"{name} must be a value of type {datatype}; got {shown!r}") from None


def decode(datatype: str, raw: bytes) -> list[Scalar]:
    """The elements of a raw tensor, flat."""
    if datatype == "BYTES":
        return list(_strings(raw))
    code = _FORMATS[datatype]
    size = struct.calcsize(f"<{code}")
    return list(struct.unpack(f"<{len(raw) // size}{code}", raw))


def _strings(raw: bytes) -> Iterable[str]:
    offset = 0
    while offset < len(raw):
        (length,) = struct.unpack_from("<I", raw, offset)
        offset += 4 + length
        yield raw[offset - length : offset].decode()


def _prefixed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data

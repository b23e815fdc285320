"""gRPC requests with tensors that nobody should send: types, shapes, names, sizes, encodings."""

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

import random
import struct

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from multilora_api.tensors import (
    ADMIN_INPUTS,
    ADMIN_MODEL,
    ENGINE_INPUTS,
    ENGINE_MODEL,
    ENSEMBLE_INPUTS,
    TEXT_MODEL,
    VLLM_INPUTS,
    VLLM_MODEL,
    Tensor,
)  # fmt: skip
from torture.findings import Round, Unexplained
from torture.speak import Answer

_MODELS = {
    TEXT_MODEL: ENSEMBLE_INPUTS,
    VLLM_MODEL: VLLM_INPUTS,
    ENGINE_MODEL: ENGINE_INPUTS,
    ADMIN_MODEL: ADMIN_INPUTS,
    "tokenizer": ENSEMBLE_INPUTS[:2],
}
_SIZES = {  # bytes of a value; "" is no type
    "BOOL": 1, "INT8": 1, "FP16": 2, "INT32": 4, "UINT32": 4, "FP32": 4, "INT64": 8, "UINT64": 8,
    "FP64": 8, "BYTES": 0, "": 0,
}  # fmt: skip
_SHAPES = ((1, 1), (1, 0), (0,), (), (2, 1), (1, 2, 3), (1, 2000), (-1,), (1, 2**40), (2**63 - 1,))
_TEXTS = (
    b"hello", b"", b"\xff\xfe", b"\0", "😀".encode(), b"upper", b"list", b"../x", b"a\nb",
    b'{"max_tokens": 2}', b'{"max_tokens": 1e999}', b"[" * 5000, b'[{"role": "user"}]', b"x" * 3000,
)  # fmt: skip
_LARGE = 8_000_000  # bytes of a seldom text
_SECONDS = 60.0
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
_CODES = {  # of a request that is wrong; INTERNAL is Triton's own word for many of these
    "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "CANCELLED", "RESOURCE_EXHAUSTED", "INTERNAL",
}  # fmt: skip


def tensors(round_: Round) -> None:
    def act(rng: random.Random) -> None:
        request = _request(rng)
        shown = f" for {str(request)[:400]!r}"
        try:
            for response in stub.ModelStreamInfer(iter([request]), timeout=_SECONDS):
                _check(response.error_message, shown)
            if rng.random() < 0.2:
                stub.ModelInfer(request, timeout=_SECONDS)
        except grpc.RpcError as error:
            _check(error.details() or "", shown)
            if error.code().name not in _CODES:
                raise Unexplained(f"{error.code()} {error.details()}{shown}") from None

    with grpc.insecure_channel(round_.server.grpc, _OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        round_.repeat(4, act)


def _check(message: str, shown: str) -> None:
    if Answer(400, {}, message.encode()).problem or "/model.py" in message:
        raise Unexplained(message + shown)


def _request(rng: random.Random) -> service_pb2.ModelInferRequest:
    model = rng.choice(sorted(_MODELS))
    name = model if rng.random() < 0.97 else rng.choice(("", "nobody", "a" * 3000, "../x"))
    request = service_pb2.ModelInferRequest(model_name=name, id=rng.choice(("", "1", "é" * 200)))
    if rng.random() < 0.1:
        request.parameters[rng.choice(("priority", "nope", ""))].string_param = "x"
    first, *others = _MODELS[model]
    some = rng.sample(others, min(rng.randrange(4), len(others)))
    for tensor in [first] * (rng.random() < 0.95) + some:
        _add(request, tensor, rng)
    if rng.random() < 0.05:
        del request.raw_input_contents[:]  # fewer contents than tensors
    return request


def _add(request: service_pb2.ModelInferRequest, tensor: Tensor, rng: random.Random) -> None:
    """Right in half of the cases, so that what stands behind the first check is reached, too."""
    name, datatype, shape = tensor.name, tensor.datatype, (1, 1)
    if rng.random() < 0.5:
        datatype, shape = rng.choice(sorted(_SIZES)), rng.choice(_SHAPES)
        name = rng.choice((name, name, name, "nobody", "", name.upper(), "\n"))
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    raw = rng.choice((b"\0", b"\1", b"\2", b"\xff")) * _SIZES[datatype]
    if datatype == "BYTES":
        text = rng.choice(_TEXTS) if rng.random() < 0.995 else b"x" * _LARGE
        lies = (0, 2**31, 2**32 - 1, len(text) + 1)
        length = len(text) if rng.random() < 0.9 else rng.choice(lies)
        raw = struct.pack("<I", length) + text
    elif (name, datatype) != (tensor.name, tensor.datatype) and rng.random() < 0.5:
        raw = rng.randbytes(rng.choice((0, 3, 4, 8, 8000)))
    request.raw_input_contents.append(raw)

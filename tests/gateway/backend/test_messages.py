"""A response of the engine → what it adds."""

import json
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from multilora_client.tensors import Value, add_input
from multilora_gateway.backend.messages import Token, delta_of

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false


def response(**outputs: tuple[str, Value]) -> Any:
    request = service_pb2.ModelInferRequest()  # lends its tensors to the response
    for name, (datatype, value) in outputs.items():
        add_input(request, name, datatype, value)
    inner = service_pb2.ModelInferResponse(raw_output_contents=request.raw_input_contents)
    for tensor in request.inputs:
        inner.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return service_pb2.ModelStreamInferResponse(infer_response=inner)


@pytest.mark.parametrize(
    ("count", "top"),
    [(None, ()), (0, ()), (1, ((8, -0.25),)), (2, ((8, -0.25), (9, -2.0)))],
)
def test_the_likeliest_tokens_are_as_many_as_asked_for(count: int | None, top: Any) -> None:
    """Every token in `logprobs` has a rank, the picked one too."""
    entries = {"7": {"logprob": -3.0, "rank": 5}}
    for rank, (name, logprob) in enumerate(((8, -0.25), (9, -2.0))[: count or 0], 1):
        entries[str(name)] = {"logprob": logprob, "rank": rank}
    message = response(
        text_output=("BYTES", "a"),
        output_ids=("INT32", [7]),
        finish_reason=("BYTES", "None"),
        logprobs=("BYTES", json.dumps([entries])),
    )
    logprob = None if count is None else -3.0
    assert delta_of(message, count).tokens == (Token(7, logprob, top),)

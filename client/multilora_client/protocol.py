"""One generation as KServe messages: the request to send and the reply put together again.

Laws: no network here; a parameter travels only when the caller gave it; a reply is whole only
after the response that carries `triton_final_response`.
"""

# The generated KServe messages carry no types.
# pyright: reportAttributeAccessIssue=false

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

from tritonclient.grpc import service_pb2

from multilora_api.tensors import ADAPTER_INPUTS, SAMPLING_INPUTS
from multilora_client.errors import MultiLoRAError, from_message, invalid
from multilora_client.sampling import Sampling
from multilora_client.tensors import Scalar, Value, add_input, outputs

CANCEL_SECONDS = 2.0  # how long leaving a stream early may wait for the server
CHANNEL_OPTIONS = (
    # The longest prompt or answer is the server's to decide.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # By default the pauses between attempts grow to two minutes, long after a server is back.
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.min_reconnect_backoff_ms", 5000),  # despite its name: how long one attempt may take
)


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


ARGUMENTS = (*SAMPLING_INPUTS, *ADAPTER_INPUTS)  # of a generation; see Sampling
_DATATYPES = {tensor.name: tensor.datatype for tensor in ARGUMENTS}
_REPORTS = ("finish_reason", "num_input_tokens", "num_output_tokens")


@dataclass(frozen=True)
class Generation:
    """A finished answer. `finish_reason` is "stop" (end of text or a stop word) or "length"."""

    text: str
    finish_reason: str
    num_input_tokens: int
    num_output_tokens: int

    def __str__(self) -> str:
        return self.text


def generate_request(
    model: str,
    prompt: str | Sequence[Message],
    adapter_id: str,
    stream: bool,
    sampling: Sampling,
) -> service_pb2.ModelInferRequest:
    """The request for one answer to a text, or to the messages of a chat."""
    request = new_request(model, str(uuid.uuid4()))
    text = prompt if isinstance(prompt, str) else json.dumps(_checked(prompt), ensure_ascii=False)
    add_input(request, "text_input", "BYTES", text)
    if not isinstance(prompt, str):
        add_input(request, "chat", "BOOL", True)
    if adapter_id:
        add_input(request, "adapter_id", "BYTES", adapter_id)
    if stream:
        add_input(request, "stream", "BOOL", True)
    for name, value in sampling.items():
        if name not in _DATATYPES:
            raise invalid(f"unknown parameter {name}; there are {', '.join(_DATATYPES)}")
        if isinstance(value, Mapping):
            value = _json(name, value)
        if value is not None and value != [] and value != ():
            add_input(request, name, _DATATYPES[name], cast(Value, value))
    for name in _REPORTS:
        add_input(request, f"return_{name}", "BOOL", True)
    return request


def stop_request(model: str, request_id: str) -> service_pb2.ModelInferRequest:
    """Cancels the running request of that id; `model` is the engine, also behind an ensemble."""
    request = new_request(model, request_id)
    add_input(request, "stop", "BOOL", True)
    return request


class GenerationReply:
    """The responses to one request, put together. `push` returns the text that each one adds.

    A response counts its own output tokens; the last one has the finish reason.
    """

    def __init__(self) -> None:
        self._text: list[str] = []
        self._finish_reason = ""
        self._num_input_tokens = 0
        self._num_output_tokens = 0
        self.complete = False

    def push(self, message: service_pb2.ModelStreamInferResponse) -> str:
        if message.error_message:
            raise from_message(message.error_message)
        response = message.infer_response
        self.complete = response.parameters["triton_final_response"].bool_param
        values = outputs(response)
        self._finish_reason = str(_first(values, "finish_reason", self._finish_reason))
        self._num_input_tokens = int(_first(values, "num_input_tokens", self._num_input_tokens))
        self._num_output_tokens += int(_first(values, "num_output_tokens", 0))
        piece = "".join(str(element) for element in values.get("text_output", []))
        self._text.append(piece)
        return piece

    def check_complete(self) -> None:
        """To be called when the server has closed the stream; raises unless the answer is whole."""
        if not self.complete:
            raise MultiLoRAError(
                "INTERNAL",
                "the server closed the stream before the answer ended; ask again, or see its log",
            )

    def result(self) -> Generation:
        if not self.complete:
            raise RuntimeError("the result is known once the stream was read to its end")
        return Generation(
            "".join(self._text),
            self._finish_reason,
            self._num_input_tokens,
            self._num_output_tokens,
        )


def new_request(model: str, request_id: str = "") -> service_pb2.ModelInferRequest:
    """A request without inputs, whose stream says when it is whole."""
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def _json(name: str, value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise invalid(f"{name} cannot be sent as JSON ({error}); give it plain values") from None


def _first(values: Mapping[str, Sequence[Scalar]], name: str, default: Scalar) -> Scalar:
    return values[name][0] if values.get(name) else default


def _checked(messages: Sequence[Message]) -> list[Message]:
    for message in messages:
        if set(message) != {"role", "content"}:
            raise invalid(f"a message has exactly the keys role and content; got {dict(message)}")
    return list(messages)

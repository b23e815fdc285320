"""The Triton model `adapters`: one action on the adapters of multilora_llm → its answer as JSON.

It checks what it is given, hands it to the tensor `admin` of multilora_llm and decides nothing. An
action that waits, such as a download, holds up no other request: `execute` returns at once and the
response follows from a thread. multilora_api/admin.py lists the actions.
"""

import difflib
import json
import logging
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

sys.path.append(str(Path(__file__).resolve().parents[2] / "multilora_llm" / "1"))

from multilora.adapters.admin.command import parse_admin_command
from multilora.errors import ErrorCode, RequestError, internal, invalid
from multilora_api.admin import ADMIN_INPUTS, QUICK_ACTIONS
from multilora_api.tensors import ENGINE_MODEL, is_tritons

_LOG = logging.getLogger("multilora.adapters")
_INPUTS = tuple(tensor.name for tensor in ADMIN_INPUTS)


class TritonPythonModel:
    """The names and signatures of the methods are the Python backend's."""

    def initialize(self, args: dict[str, str]) -> None:
        # Apart, so that no number of loads keeps a list waiting; together they stay below the 32
        # calls of other Triton models that the Python backend has at once.
        self._quick = ThreadPoolExecutor(4, thread_name_prefix="quick")
        self._slow = ThreadPoolExecutor(24, thread_name_prefix="slow")

    def execute(self, requests: list[Any]) -> None:
        """Hand each request to a thread, which answers it."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                fields = _fields(request)
            except RequestError as error:
                _send(sender, _failure(error))
                continue
            pool = self._quick if fields["action"] in QUICK_ACTIONS else self._slow
            pool.submit(_answer, sender, fields)

    def finalize(self) -> None:
        self._quick.shutdown()
        self._slow.shutdown()


def _answer(sender: Any, fields: dict[str, Any]) -> None:
    """Runs on a thread: ask multilora_llm and send what it answers."""
    try:
        response = _ask(json.dumps(fields))
    except Exception as error:
        _LOG.exception("the action %s failed", fields["action"])  # what it holds may be secret
        response = _failure(internal(f"internal error: {error!r}"))
    _send(sender, response)


def _ask(command: str) -> Any:
    """The response to a command, by way of multilora_llm's tensor `admin`."""
    request = pb_utils.InferenceRequest(
        model_name=ENGINE_MODEL,
        requested_output_names=["text_output"],
        inputs=[
            pb_utils.Tensor("input_ids", np.zeros((1, 1), dtype=np.int32)),  # it requires them
            pb_utils.Tensor("admin", _strings(command.encode())),
        ],
    )
    result = None
    for response in request.exec(decoupled=True):
        if response.has_error():
            return _failure(_error(response.error().message()))
        if response.output_tensors():
            result = pb_utils.get_output_tensor_by_name(response, "text_output").as_numpy().item()
    if result is None:
        raise RuntimeError("multilora_llm ended the request without an answer")
    return pb_utils.InferenceResponse([pb_utils.Tensor("result", _strings(result))])


def _error(tagged: str) -> RequestError:
    """The error that multilora_llm sent: its code does not survive the call, the tag does."""
    message, _, tag = tagged.rpartition(" [")
    try:
        return RequestError(ErrorCode(tag.removesuffix("]")), message)
    except ValueError:  # an error of the Triton server's own: the model is not there any more
        message = f"multilora_llm does not answer ({tagged}); look at the server's log"
        return RequestError(ErrorCode.UNAVAILABLE, message)


def _fields(request: Any) -> dict[str, Any]:
    """What the request asks for, as `admin` takes it; raises RequestError (INVALID_ARG)."""
    _check_names(json.loads(request.parameters()))
    tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    fields = {name: _value(name, tensors[name]) for name in _INPUTS if name in tensors}
    parse_admin_command(json.dumps(fields))
    return fields


def _check_names(parameters: Mapping[str, Any]) -> None:
    """/generate turns a misspelt input into a parameter: nothing may be ignored silently."""
    for name in parameters:
        if is_tritons(name):
            continue
        close = difflib.get_close_matches(name, _INPUTS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(_INPUTS)}"
        raise invalid(f"unknown name {name!r}; {hint}")


def _value(name: str, tensor: np.ndarray) -> str | bool | float:
    if tensor.size != 1:
        raise invalid(f"{name} must hold one value; got {tensor.size}")
    value = tensor.item()
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(f"{name} is not valid UTF-8; encode it so") from None


def _strings(value: bytes) -> np.ndarray:
    return np.array([[value]], dtype=np.object_)


def _failure(error: RequestError) -> Any:
    code = getattr(pb_utils.TritonError, error.code.value)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.tagged, code))


def _send(sender: Any, response: Any) -> None:
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

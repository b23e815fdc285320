"""A Triton request: its tensors and parameters, read and checked.

Shapes are [1, 1] for scalars, [1, n] for `input_ids` and `stop_words`. One Triton request is one
prompt; the engine batches requests by itself. Typed tensors win over `sampling_parameters`, which
wins over request parameters. A chat brings its messages beside the prompt, because an adapter may
render them in its own way. Everything wrong is a RequestError (INVALID_ARG) naming the input.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from multilora.adapters.admin.command import AdminCommand, parse_admin_command
from multilora.adapters.naming.source import hub_token
from multilora.errors import invalid
from multilora.request import ADAPTER_TIMEOUT, Request
from multilora.wire.chat import encode_chat, parse_messages
from multilora.wire.sampling_parameters import (
    adapter_name,
    check_names,
    parse_sampling_parameters,
    sampling_params,
)
from multilora_api.tensors import OPTIONAL_OUTPUTS, SAMPLING_INPUTS, is_tritons
from multilora_text.chat_template import ChatTemplate
from multilora_text.tokenizer import Tokenizer

Tensors = Mapping[str, np.ndarray]

_OPTIONAL_OUTPUTS = tuple(output.name for output in OPTIONAL_OUTPUTS)
_ADAPTER_TIMEOUT = "adapter_timeout"


@dataclass(frozen=True)
class TritonRequest:
    """Filled by `parse_request`. `client_id` is what the client called it, maybe nothing."""

    request: Request
    client_id: str
    stream: bool
    echo: bool  # put the prompt before the text (exclude_input_in_output = false)
    outputs: frozenset[str]  # names of OPTIONAL_OUTPUTS that were asked for
    messages: list[dict[str, Any]] | None = None  # of a chat

    def with_template(self, template: ChatTemplate | None, tokenizer: Tokenizer) -> "TritonRequest":
        """The same with its messages rendered by an adapter's template, or by the base model's.

        Raises RequestError (INVALID_ARG).
        """
        if self.messages is None:
            return self
        prompt = tuple(encode_chat(tokenizer, self.messages, template))
        request = dataclasses.replace(self.request, prompt_token_ids=prompt)
        return dataclasses.replace(self, request=request)


def is_stop(tensors: Tensors) -> bool:
    """True when this Triton request cancels the running one of the same id."""
    return bool(_scalar(tensors, "stop", False))


def is_admin(tensors: Tensors) -> bool:
    """True when this Triton request administers the adapters."""
    return "admin" in tensors


def admin_command(tensors: Tensors) -> AdminCommand:
    """What `admin` asks for; raises RequestError (INVALID_ARG)."""
    return parse_admin_command(_text("admin", _scalar(tensors, "admin", b"")))


def parse_request(
    tensors: Tensors,
    parameters: Mapping[str, Any],
    client_id: str,
    request_id: str,
    default_adapter_timeout: float = ADAPTER_TIMEOUT,
) -> TritonRequest:
    """`request_id` names the request inside; it must be unique, `client_id` need not.

    `default_adapter_timeout` (seconds) is for requests that name none.
    """
    outputs = {name for name in _OPTIONAL_OUTPUTS if _scalar(tensors, f"return_{name}", False)}
    stream = bool(_scalar(tensors, "stream", False))
    echo = not _scalar(tensors, "exclude_input_in_output", True)
    if stream and echo:
        raise invalid(
            "stream with exclude_input_in_output = false is not supported; leave one of them out"
        )
    values = _named_values(tensors, parameters)
    adapter_id = _text("adapter_id", _scalar(tensors, "adapter_id", b"")) or adapter_name(values)
    sampling = sampling_params(values)
    if sampling.logprobs is None and outputs & {"logprobs", "cumulative_logprob"}:
        sampling = dataclasses.replace(sampling, logprobs=0)
    timeout = _adapter_timeout(tensors, parameters, default_adapter_timeout)
    token = hub_token(_text("adapter_token", _scalar(tensors, "adapter_token", b"")))
    return TritonRequest(
        request=Request(request_id, _prompt(tensors), adapter_id, sampling, timeout, token),
        client_id=client_id,
        stream=stream,
        echo=echo,
        outputs=frozenset(outputs),
        messages=_messages(tensors),
    )


def _named_values(tensors: Tensors, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling names → values, the strongest source last."""
    own = {
        name: value
        for name, value in parameters.items()
        if not is_tritons(name) and name != _ADAPTER_TIMEOUT
    }
    check_names(own, "request parameters")
    json_text = _text("sampling_parameters", _scalar(tensors, "sampling_parameters", b""))
    given = parse_sampling_parameters(json_text)
    check_names(given, "sampling_parameters")
    values = {**own, **{name: value for name, value in given.items() if value is not None}}
    for name, _, many in SAMPLING_INPUTS:
        if name in tensors and many:
            values[name] = [_text(name, word) for word in _row(tensors, name)]
        elif name in tensors:
            value = _scalar(tensors, name, None)
            values[name] = _text(name, value) if isinstance(value, bytes) else value
    if values.get("stop_words"):
        values.pop("stop", None)
    return values


def _adapter_timeout(tensors: Tensors, parameters: Mapping[str, Any], default: float) -> float:
    """Seconds to wait for an adapter that loads."""
    given = _scalar(tensors, _ADAPTER_TIMEOUT, parameters.get(_ADAPTER_TIMEOUT))
    if given is None:
        return default
    try:
        seconds = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise invalid(f"{_ADAPTER_TIMEOUT} must be a positive number of seconds; got {given!r}")
    return seconds


def _messages(tensors: Tensors) -> list[dict[str, Any]] | None:
    """The messages of a chat; None when it is none."""
    if not _scalar(tensors, "chat", False):
        return None
    if "text_input" not in tensors:
        raise invalid("chat is set but text_input is missing; send the messages there as JSON")
    return parse_messages(_text("text_input", _scalar(tensors, "text_input", b"")))


def _prompt(tensors: Tensors) -> tuple[int, ...]:
    if "input_ids" not in tensors:
        raise invalid("input_ids is missing; send the token ids of one prompt as INT32 [1, n]")
    return tuple(_row(tensors, "input_ids"))


def _row(tensors: Tensors, name: str) -> list[Any]:
    """The values of a [1, n] tensor."""
    tensor = tensors[name]
    if tensor.ndim == 2 and tensor.shape[0] > 1:
        raise invalid(
            f"{name} has {tensor.shape[0]} rows; send one prompt per request, requests that run "
            "at the same time are batched by the server"
        )
    return tensor.reshape(-1).tolist()


def _scalar(tensors: Tensors, name: str, default: Any) -> Any:
    """The value of a [1, 1] tensor; `default` when the client did not send it."""
    if name not in tensors:
        return default
    values = _row(tensors, name)
    if len(values) != 1:
        raise invalid(f"{name} must hold one value; got {len(values)}")
    return values[0]


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(f"{name} is not valid UTF-8; encode it so") from None

"""A Triton request: its tensors and parameters, read and checked.

Shapes are [1, 1] for scalars, [1, n] for lists; one Triton request is one prompt, or one action.
The engine batches requests by itself. Typed tensors win over `sampling_parameters`, which wins over
request parameters. The prompt is token ids, or else a text, or a chat, whose messages an adapter
may render in its own way. Everything wrong is a RequestError (INVALID_ARG) naming the input.

A prompt in `vllm_text_input` comes from a client of the Triton vLLM backend, whose defaults then
hold: temperature 1; the prompt is part of an answer that is not streamed; no logprobs unless
sampling_parameters ask for some; `n` answers; request parameters only without sampling_parameters;
and max_tokens that exceed the room are lowered.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multilora.adapters.admin.command import AdminCommand, parse_admin_command
from multilora.adapters.naming.source import hub_token
from multilora.errors import invalid
from multilora.request import ADAPTER_TIMEOUT, Request, RequestLimits
from multilora.wire.prompt import parse_messages
from multilora.wire.sampling_parameters import (
    adapter_name,
    check_names,
    parse_sampling_parameters,
    read_count,
    sampling_params,
)
from multilora_api.admin import KEYS
from multilora_api.sampling import NUM_SEEDS
from multilora_api.tensors import (
    ENSEMBLE_INPUTS,
    OPEN_SHARED_STREAM,
    OPTIONAL_OUTPUTS,
    PROMPT_LOGPROBS,
    SAMPLING_INPUTS,
    SHARED_STREAM,
    VLLM_TEXT,
    is_tritons,
)
from multilora_text.tokenizer import Tokenizer

Tensors = Mapping[str, np.ndarray]

_OPTIONAL_OUTPUTS = tuple(output.name for output in OPTIONAL_OUTPUTS)
_ADAPTER_TIMEOUT = "adapter_timeout"
_VLLM_TEMPERATURE = 1.0
# Input of multilora_llm → key of an administrator's command.
_ADMIN_KEYS = {"action": "action"} | {key.tensor or name: name for name, key in KEYS.items()}
_OF_ACTIONS = frozenset(KEYS) - {tensor.name for tensor in ENSEMBLE_INPUTS}


@dataclass(frozen=True)
class TritonRequest:
    """Filled by `parse_request`. `client_id` is what the client called it, maybe nothing.

    The prompt of `request` is empty as long as it stands in `messages`, of a chat, or in `text`.
    """

    request: Request
    client_id: str
    stream: bool
    echo: bool  # put the prompt before the text (exclude_input_in_output = false)
    outputs: frozenset[str]  # names of OPTIONAL_OUTPUTS and PROMPT_LOGPROBS, if asked for
    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    from_vllm: bool = False
    num_answers: int = 1
    shows_logprobs: bool = True  # else the output logprobs says that there are none
    shared_stream: str = ""  # the name of the one that the answer goes to

    def with_prompt(self, token_ids: Sequence[int]) -> "TritonRequest":
        """The same with what its messages, or its text, have become."""
        request = dataclasses.replace(self.request, prompt_token_ids=tuple(token_ids))
        return dataclasses.replace(self, request=request)

    def prompt_text(self, tokenizer: Tokenizer) -> str:
        """As it was sent, else decoded."""
        return tokenizer.decode(self.request.prompt_token_ids) if self.text is None else self.text

    def answers(self) -> list["TritonRequest"]:
        """One request for each of its answers, with ids and seeds of their own. The first of them
        tells of the prompt."""
        if self.num_answers == 1:
            return [self]
        request, found = self.request, list[TritonRequest]()
        for number in range(self.num_answers):
            sampling = request.sampling
            if sampling.seed is not None:
                seed = (sampling.seed + number) % NUM_SEEDS
                sampling = dataclasses.replace(sampling, seed=seed)
            if number:
                sampling = dataclasses.replace(sampling, prompt_logprobs=None)
            own = f"{request.request_id}/{number}"
            one = dataclasses.replace(request, request_id=own, sampling=sampling)
            found.append(dataclasses.replace(self, request=one, num_answers=1))
        return found


def is_stop(tensors: Tensors) -> bool:
    """True when this Triton request cancels the running one of the same id."""
    return bool(scalar(tensors, "stop", False))


def opens_shared_stream(tensors: Tensors) -> bool:
    """True when other requests may name this Triton request as their shared stream. RequestError
    when it asks for something, too."""
    opens = bool(scalar(tensors, OPEN_SHARED_STREAM.name, False))
    if opens and len(tensors) > 1:
        other = min(tensors.keys() - {OPEN_SHARED_STREAM.name})
        raise invalid(
            f"{other} is set beside {OPEN_SHARED_STREAM.name}; open the stream, and name it in "
            f"{SHARED_STREAM.name} of requests"
        )
    return opens


def is_admin(tensors: Tensors) -> bool:
    """True when this Triton request administers the adapters."""
    return "action" in tensors


def admin_command(tensors: Tensors, parameters: Mapping[str, Any]) -> AdminCommand:
    """What the request asks for; raises RequestError (INVALID_ARG).

    /generate turns a misspelt input into a parameter: nothing may be ignored silently.
    """
    known = _ADMIN_KEYS.values()
    for name in [*parameters, *(name for name in tensors if name not in _ADMIN_KEYS)]:
        if not is_tritons(name):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise invalid(f"unknown name {name!r} beside an action; {hint}")
    return parse_admin_command(
        {key: scalar(tensors, name, None) for name, key in _ADMIN_KEYS.items() if name in tensors}
    )


def parse_request(
    tensors: Tensors,
    parameters: Mapping[str, Any],
    client_id: str,
    request_id: str,
    limits: RequestLimits,
    default_adapter_timeout: float = ADAPTER_TIMEOUT,
) -> TritonRequest:
    """`request_id` names the request inside; it must be unique, `client_id` need not.

    `default_adapter_timeout` (seconds) is for requests that name none.
    """
    if given := _OF_ACTIONS & set(tensors):
        name = min(given)
        raise invalid(f"{name} belongs to an action; send one as action, or leave {name} out")
    from_vllm = VLLM_TEXT.name in tensors
    outputs = {name for name in _OPTIONAL_OUTPUTS if scalar(tensors, f"return_{name}", False)}
    stream = bool(scalar(tensors, "stream", False))
    echo = not scalar(tensors, "exclude_input_in_output", stream or not from_vllm)
    if stream and echo:
        raise invalid(
            "stream with exclude_input_in_output = false is not supported; leave one of them out"
        )
    values = _named_values(tensors, parameters, from_vllm)
    adapter_id = scalar(tensors, "adapter_id", "") or adapter_name(values)
    num_answers = read_count("n", values.pop("n", None)) if from_vllm else 1
    sampling = sampling_params(values)
    shows_logprobs = not from_vllm or sampling.logprobs is not None
    if sampling.logprobs is None and outputs & {"logprobs", "cumulative_logprob"}:
        sampling = dataclasses.replace(sampling, logprobs=0)
    if sampling.prompt_logprobs is not None:
        outputs.add(PROMPT_LOGPROBS.name)
    timeout = _adapter_timeout(tensors, parameters, default_adapter_timeout)
    token = hub_token(scalar(tensors, "adapter_token", ""))
    messages = _messages(tensors)
    prompt, prompt_text = _prompt(tensors, messages is not None, limits)
    return TritonRequest(
        request=Request(request_id, prompt, adapter_id, sampling, timeout, token),
        client_id=client_id,
        stream=stream,
        echo=echo,
        outputs=frozenset(outputs),
        messages=messages,
        text=prompt_text,
        from_vllm=from_vllm,
        num_answers=num_answers,
        shows_logprobs=shows_logprobs,
        shared_stream=scalar(tensors, SHARED_STREAM.name, ""),
    )


def read_request(request: Any) -> tuple[str, Tensors, dict[str, Any]]:
    """What its client called a request of the Python backend, its tensors and its parameters."""
    try:
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        return request.request_id(), tensors, json.loads(request.parameters())
    except UnicodeDecodeError:
        raise invalid(
            "a name or a value of the request is not valid UTF-8; encode the request so"
        ) from None


def _named_values(
    tensors: Tensors, parameters: Mapping[str, Any], from_vllm: bool
) -> dict[str, Any]:
    """Sampling names → values, the strongest source last."""
    json_text = scalar(tensors, "sampling_parameters", "")
    given = parse_sampling_parameters(json_text)
    check_names(given, "sampling_parameters", from_vllm)
    own = {
        name: value
        for name, value in parameters.items()
        if not is_tritons(name) and name != _ADAPTER_TIMEOUT
    }
    if from_vllm:
        own = {"temperature": _VLLM_TEMPERATURE, **({} if json_text else own)}
    check_names(own, "request parameters", from_vllm)
    values = {**own, **{name: value for name, value in given.items() if value is not None}}
    for name, _, many in SAMPLING_INPUTS:
        if name in tensors and many:
            values[name] = [_text(name, word) for word in _row(tensors, name)]
        elif name in tensors:
            values[name] = scalar(tensors, name, None)
    if values.get("stop_words"):
        values.pop("stop", None)
    return values


def _adapter_timeout(tensors: Tensors, parameters: Mapping[str, Any], default: float) -> float:
    """Seconds to wait for an adapter that loads."""
    given = scalar(tensors, _ADAPTER_TIMEOUT, parameters.get(_ADAPTER_TIMEOUT))
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
    if not scalar(tensors, "chat", False):
        return None
    if "text_input" not in tensors:
        raise invalid("chat is set but text_input is missing; send the messages there as JSON")
    return parse_messages(scalar(tensors, "text_input", ""))


def _prompt(
    tensors: Tensors, is_chat: bool, limits: RequestLimits
) -> tuple[tuple[int, ...], str | None]:
    """(token ids, text that has to become some): neither for a chat without a placeholder."""
    if "input_ids" in tensors:
        given = tensors["input_ids"]
        limits.check_prompt(given.size and given.shape[-1])  # before a list is made of them
        limits.check_ids("input_ids", (int(given.min()), int(given.max())))  # they may be decoded
        return tuple(_row(tensors, "input_ids")), None
    if is_chat:
        return (), None
    for name in (VLLM_TEXT.name, "text_input"):
        if name in tensors:
            return (), scalar(tensors, name, "")
    raise invalid(
        "input_ids is missing; send the token ids of one prompt as INT32 [1, n], its text as "
        "text_input, or an action"
    )


def _row(tensors: Tensors, name: str) -> list[Any]:
    """The values of a [1, n] tensor."""
    tensor = tensors[name]
    if tensor.ndim == 2 and tensor.shape[0] > 1:
        raise invalid(
            f"{name} has {tensor.shape[0]} rows; send one prompt per request, requests that run "
            "at the same time are batched by the server"
        )
    return tensor.reshape(-1).tolist()


def scalar(tensors: Tensors, name: str, default: Any) -> Any:
    """The value of a [1, 1] tensor, a string as str; `default` when the client did not send it."""
    if name not in tensors:
        return default
    values = _row(tensors, name)
    if len(values) != 1:
        raise invalid(f"{name} must hold one value; got {len(values)}")
    return _text(name, values[0]) if isinstance(values[0], bytes) else values[0]


def _text(name: str, value: bytes) -> str:
    """The string that an element of a tensor stands for."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(f"{name} is not valid UTF-8; encode it so") from None

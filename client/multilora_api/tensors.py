"""The Triton models that clients call, and their tensors.

One request is one prompt: a scalar travels as [1, 1], a list as [1, n]; those of `vllm_model` have
no batch: [1] and [n]. Types are KServe's.
"""

from typing import NamedTuple

from multilora_api.admin import KEYS
from multilora_api.sampling import PARAMETERS

TEXT_MODEL = "multilora"  # the ensemble
ENGINE_MODEL = "multilora_llm"
ADMIN_MODEL = "adapters"
VLLM_MODEL = "vllm_model"  # an ensemble, as clients of the Triton vLLM backend call one
RUNNING = (
    "None"  # finish_reason of a response that is not the last (the Triton vLLM backend's word)
)

_TRITON_PARAMETERS = ("id", "priority", "timeout", "binary_data_output")


class Tensor(NamedTuple):
    """`many`: any number of values, otherwise one."""

    name: str
    datatype: str
    many: bool = False


# Outputs that a request asks for with an input return_NAME.
OPTIONAL_OUTPUTS = (
    Tensor("finish_reason", "BYTES"),
    Tensor("num_input_tokens", "UINT32"),
    Tensor("num_output_tokens", "UINT32"),
    Tensor("logprobs", "BYTES"),
    Tensor("cumulative_logprob", "FP32"),
    Tensor("queue_time", "FP32"),
)
# An output of requests whose sampling_parameters say prompt_logprobs.
PROMPT_LOGPROBS = Tensor("prompt_logprobs", "BYTES")
# Outputs of a request; the others are those of each of its answers.
OF_THE_PROMPT = frozenset(("num_input_tokens", "queue_time", PROMPT_LOGPROBS.name))
OUTPUTS = (
    Tensor("text_output", "BYTES"),
    Tensor("output_ids", "INT32", many=True),
    *OPTIONAL_OUTPUTS,
    PROMPT_LOGPROBS,
)

# Of a shared stream, through which a client with many requests is told of all of them: the request
# that opens one, those whose answers go there, and whose the columns of its responses are.
OPEN_SHARED_STREAM = Tensor("open_shared_stream", "BOOL")
SHARED_STREAM = Tensor("shared_stream", "BYTES")
REQUEST_ID = Tensor("request_id", "BYTES", many=True)
NOT_OPEN = "no shared stream is open"  # the engine says so of one that has ended meanwhile

SAMPLING_INPUTS = tuple(
    Tensor(parameter.tensor, parameter.datatype, parameter.kind == "strings")
    for parameter in PARAMETERS.values()
    if parameter.tensor
)
# What a request says of its adapter besides the name.
ADAPTER_INPUTS = (Tensor("adapter_timeout", "FP32"), Tensor("adapter_token", "BYTES"))
_ADAPTER = (Tensor("adapter_id", "BYTES"), *ADAPTER_INPUTS)
_COMMON = (
    Tensor("stream", "BOOL"),
    *SAMPLING_INPUTS,
    Tensor("sampling_parameters", "BYTES"),
    Tensor("stop", "BOOL"),
    Tensor("exclude_input_in_output", "BOOL"),
    *(Tensor(f"return_{output.name}", "BOOL") for output in OPTIONAL_OUTPUTS),
)
_TEXT, _CHAT = Tensor("text_input", "BYTES"), Tensor("chat", "BOOL")

ENSEMBLE_INPUTS = (_TEXT, _CHAT, *_ADAPTER, *_COMMON)
# The prompt in `vllm_model`: what its client leaves out means what it means to that backend, and
# so do the outputs.
VLLM_TEXT = Tensor("vllm_text_input", "BYTES")
_VLLM_RETURNS = (
    "finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens"
)  # fmt: skip
VLLM_INPUTS = (
    _TEXT,
    Tensor("stream", "BOOL"),
    Tensor("sampling_parameters", "BYTES"),
    Tensor("exclude_input_in_output", "BOOL"),
    *(Tensor(f"return_{name}", "BOOL") for name in _VLLM_RETURNS),
    Tensor("stop", "BOOL"),  # ours: that backend sees a client leave, an ensemble does not
)
VLLM_OUTPUTS = tuple(
    tensor._replace(many=tensor.name not in OF_THE_PROMPT)
    for tensor in OUTPUTS
    if tensor.name in ("text_output", *_VLLM_RETURNS, PROMPT_LOGPROBS.name)
)
ADMIN_INPUTS = (
    Tensor("action", "BYTES"),
    *(Tensor(name, key.datatype) for name, key in KEYS.items()),
)
ADMIN_OUTPUT = Tensor("result", "BYTES")
ENGINE_INPUTS = (
    Tensor("input_ids", "INT32", many=True),
    _TEXT,
    VLLM_TEXT,
    _CHAT,
    *_ADAPTER,
    *_COMMON,
    OPEN_SHARED_STREAM,
    SHARED_STREAM,
    Tensor("action", "BYTES"),
    *(
        Tensor(name, key.datatype)
        for name, key in KEYS.items()
        if not key.tensor and name not in {tensor.name for tensor in _ADAPTER}
    ),
)
ENGINE_OUTPUTS = (*OUTPUTS, REQUEST_ID)


def is_tritons(name: str) -> bool:
    """Whether a request parameter of that name is the Triton server's own."""
    return name in _TRITON_PARAMETERS or name.startswith(("triton_", "sequence_"))

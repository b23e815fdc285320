"""A request for generation, checked and ready: its prompt as token ids, and what to ask for."""

import asyncio
import dataclasses
import json
import random
import time
from dataclasses import dataclass
from typing import Any

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.served_model import BaseModel
from multilora_gateway.errors import GatewayError, invalid
from multilora_gateway.generation.adapter_selection import wanted_adapter
from multilora_gateway.generation.grammar import with_object_types
from multilora_gateway.generation.job import Call
from multilora_gateway.http.access import Caller
from multilora_gateway.settings import Settings
from multilora_gateway.tgi.parameters import GenerateRequest, Parameters
from multilora_gateway.tgi.validation import check_inputs, check_parameters, max_new_tokens
from multilora_text.errors import TextError

_LONG = 8192  # characters; longer prompts are tokenised beside the event loop
_SEEDS = 1 << 53  # a seed that JavaScript clients can send back


@dataclass(frozen=True)
class Job:
    """Filled by `prepare`. `arrived` and `checked` are of time.perf_counter()."""

    request: GenerateRequest
    parameters: Parameters
    base: BaseModel
    call: Call
    arrived: float
    checked: float

    @property
    def seed(self) -> int | None:
        """What the sampling starts from; None when greedy."""
        return self.call.sampling.get("seed")

    @property
    def prefix(self) -> str:
        """What is put before the generated text."""
        return self.request.inputs if self.parameters.return_full_text else ""

    @property
    def input_length(self) -> int:
        return len(self.call.prompt_ids)

    def again(self) -> "Job":
        """The same with another seed."""
        sampling = {**self.call.sampling, "seed": random.randrange(_SEEDS)}
        return dataclasses.replace(self, call=dataclasses.replace(self.call, sampling=sampling))


async def prepare(
    request: GenerateRequest, caller: Caller, backend: Backend, settings: Settings, stream: bool
) -> Job:
    """Raises GatewayError for a request that cannot be served."""
    arrived = time.perf_counter()
    given = request.parameters or Parameters()
    check_parameters(given, settings, stream)
    base = await backend.base()
    check_inputs(request.inputs, given, base)
    adapter_id = await wanted_adapter(given.wish, caller, backend)
    prompt = await _encode(request.inputs, given, adapter_id, base, backend)
    most = max_new_tokens(given, len(prompt), base)
    call = Call(
        prompt,
        adapter_id,
        _sampling(given, most, stream),
        adapter_token=given.wish.token,
    )
    return Job(request, given, base, call, arrived, time.perf_counter())


async def _encode(
    inputs: str, given: Parameters, adapter_id: str, base: BaseModel, backend: Backend
) -> list[int]:
    tokenizer = base.tokenizer
    if given.apply_chat_template:
        template = await backend.template(adapter_id, given.wish.token)
        messages = [{"role": "user", "content": inputs}]
        try:
            ids = await asyncio.to_thread(tokenizer.encode_chat, messages, template)
        except TextError as error:
            raise GatewayError(422, "template_error", f"Template error: {error}") from None
    elif len(inputs) > _LONG:
        ids = await asyncio.to_thread(tokenizer.encode, inputs)
    else:
        ids = tokenizer.encode(inputs)
    if not ids:
        raise invalid("`inputs` holds no tokens")
    return ids[-given.truncate :] if given.truncate else ids


def _sampling(given: Parameters, most: int, stream: bool) -> dict[str, Any]:
    """In the engine's names; what was not given is left out."""
    top = max(given.top_n_tokens or 0, given.return_k_alternatives or 0)
    wants_logprobs = stream or given.details or (given.best_of or 1) > 1
    values = {
        "max_tokens": most,
        "repetition_penalty": given.repetition_penalty,
        "frequency_penalty": given.frequency_penalty,
        "stop": given.stop or None,
        "ignore_eos": given.ignore_eos_token or None,
        "logprobs": top if wants_logprobs else None,
        "grammar": _grammar(given),
    }
    if given.sampling:
        values |= {
            "temperature": 1.0 if given.temperature is None else given.temperature,
            "top_k": given.top_k,
            "top_p": given.top_p,
            "typical_p": given.typical_p,
            "seed": random.randrange(_SEEDS) if given.seed is None else given.seed,
        }
    return {name: value for name, value in values.items() if value is not None}


def _grammar(given: Parameters) -> dict[str, Any] | None:
    """As the engine takes it: a schema is an object under "json"."""
    wanted = given.grammar
    if given.response_format is not None:
        return _json_grammar(given.response_format.schema_ or {"type": "object"})
    if wanted is None:
        return None
    if wanted.type == "regex":
        return {"type": "regex", "value": wanted.value}
    if wanted.type == "json_schema":
        return _json_grammar(wanted.value.schema_)
    schema = wanted.value
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise invalid(f"`grammar` value is not JSON ({error})") from None
        if not isinstance(schema, dict):
            raise invalid("`grammar` value must be a JSON schema, an object")
    return _json_grammar(schema)


def _json_grammar(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json", "value": with_object_types(schema)}

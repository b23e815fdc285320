"""A request for generation of TGI's or LoRAX's form → the job that it becomes."""

import json
import random
import time
from dataclasses import dataclass
from typing import Any

from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.errors import GatewayError, invalid
from multilora_gateway.generation.adapter_selection import AdapterSelection, selected_adapter
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.generation.grammar import json_grammar, regex_grammar, with_object_types
from multilora_gateway.generation.job import GenerationJob, generation_requests
from multilora_gateway.generation.model_name import resolve
from multilora_gateway.generation.prompt import encode_chat, encode_text
from multilora_gateway.tgi.parameters import (
    GenerateRequest,
    Parameters,
    check_inputs,
    check_parameters,
    max_new_tokens,
)
from multilora_text.errors import TextError

_SEEDS = 1 << 53  # the numbers that a JavaScript client can send back as a seed


@dataclass(frozen=True, kw_only=True)
class TgiJob(GenerationJob):
    """Filled by `prepare`. `checked` is of time.perf_counter(), as the context's `arrived` is."""

    request: GenerateRequest
    parameters: Parameters
    checked: float

    @property
    def seed(self) -> int | None:
        """The first answer's; None when greedy."""
        return self.requests[0].sampling.get("seed")

    @property
    def prefix(self) -> str:
        """The text put before the generated text."""
        return self.request.inputs if self.parameters.return_full_text else ""

    @property
    def input_length(self) -> int:
        return len(self.requests[0].prompt_ids)


async def prepare(request: GenerateRequest, context: RequestContext, stream: bool) -> TgiJob:
    """Raises GatewayError for a request that cannot be served."""
    given = request.parameters or Parameters()
    check_parameters(given, context.settings, stream)
    base = await context.admitted()
    check_inputs(request.inputs, given, base)
    adapter_id = await _adapter(request.model, given.selection, context)
    prompt = await _encode(request.inputs, given, adapter_id, base, context)
    requests = generation_requests(
        [prompt],
        _seeds(given),
        lambda budget: _sampling(given, max_new_tokens(given, budget), stream),
        base,
        adapter_id=adapter_id,
        adapter_token=given.selection.token,
    )
    return TgiJob(
        context=context,
        base=base,
        requests=requests,
        request=request,
        parameters=given,
        checked=time.perf_counter(),
    )


async def _adapter(model: str | None, selection: AdapterSelection, context: RequestContext) -> str:
    """The adapter's name at the server, "" for the base model."""
    if model and selection.merged is None and not selection.adapter_id:
        return (await resolve(context, model, selection)).adapter_id
    return await selected_adapter(selection, context)


async def _encode(
    inputs: str, given: Parameters, adapter_id: str, base: ServedModel, context: RequestContext
) -> list[int]:
    if given.apply_chat_template:
        own = await context.backend.templates(adapter_id, given.selection.token)
        messages = [{"role": "user", "content": inputs}]
        try:
            ids = await encode_chat(context.renderer, base.tokenizer, messages, own)
        except TextError as error:
            raise GatewayError(422, "template_error", f"Template error: {error}") from None
    else:
        ids = await encode_text(base.tokenizer, inputs)
    if not ids:
        raise invalid("`inputs` holds no tokens; send a prompt")
    return ids[-given.truncate :] if given.truncate else ids


def _seeds(given: Parameters) -> list[int | None]:
    """One seed for each answer, drawn here because answers name their seeds; None when greedy."""
    if not given.sampling:
        return [None]
    first = random.randrange(_SEEDS) if given.seed is None else given.seed
    return [first, *(random.randrange(_SEEDS) for _ in range(1, given.best_of or 1))]


def _sampling(given: Parameters, max_tokens: int, stream: bool) -> dict[str, Any]:
    """By the engine's names, but for the seed; what was not given is left out."""
    top = max(given.top_n_tokens or 0, given.return_k_alternatives or 0)
    wants_logprobs = stream or given.wants_details or (given.best_of or 1) > 1
    values = {
        "max_tokens": max_tokens,
        "repetition_penalty": given.repetition_penalty,
        "frequency_penalty": given.frequency_penalty,
        "stop": given.stop or None,
        "ignore_eos": given.ignore_eos_token or None,
        "logprobs": top if wants_logprobs else None,
        "prompt_logprobs": 0 if given.decoder_input_details else None,
        "grammar": _grammar(given),
    }
    if given.sampling:
        values |= {
            "temperature": 1.0 if given.temperature is None else given.temperature,
            "top_k": given.top_k,
            "top_p": given.top_p,
            "typical_p": given.typical_p,
        }
    return {name: value for name, value in values.items() if value is not None}


def _grammar(given: Parameters) -> dict[str, Any] | None:
    """The engine's `grammar`."""
    wanted = given.grammar
    if given.response_format is not None:
        schema = given.response_format.schema_ or {"type": "object"}
    elif wanted is None:
        return None
    elif wanted.type == "regex":
        return regex_grammar(wanted.value)
    elif wanted.type == "json_schema":
        schema = wanted.value.schema_
    else:
        schema = _schema(wanted.value)
    return json_grammar(with_object_types(schema))


def _schema(value: dict[str, Any] | str) -> dict[str, Any]:
    """A schema that may be the text of one."""
    if not isinstance(value, str):
        return value
    try:
        schema = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise invalid(f"`grammar` value is not JSON ({error}); correct it") from None
    if not isinstance(schema, dict):
        raise invalid("`grammar` value must be a JSON schema, an object")
    return schema

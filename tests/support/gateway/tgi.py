"""A base model and a job of the TGI API, without a server."""

from typing import Any, cast

from multilora_gateway.backend.client import Backend
from multilora_gateway.backend.messages import GenerationRequest
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.http.access import Caller
from multilora_gateway.settings import Settings
from multilora_gateway.tgi.job import TgiJob
from multilora_gateway.tgi.parameters import GenerateRequest
from multilora_text.tokenizer import Tokenizer
from support.chats import RENDERER
from support.tiny import tokenizers as tiny_tokenizers

MAX_INPUT = 64
MAX_TOTAL = 96


def tokenizer(kind: str = "byte_level") -> Tokenizer:
    return Tokenizer(tiny_tokenizers.KINDS[kind]())


def base_model(kind: str = "byte_level") -> ServedModel:
    return ServedModel(
        model_id="base",
        model_sha=None,
        dtype="float32",
        device="cpu",
        max_input_tokens=MAX_INPUT,
        max_total_tokens=MAX_TOTAL,
        max_batch_prefill_tokens=64,
        max_concurrent_requests=128,
        max_lora_rank=64,
        vocab_size=300,
        sampling_defaults={},
        tokenizer=tokenizer(kind),
    )


def job(prompt: str = "hello", *, seed: int | None = None, **parameters: Any) -> TgiJob:
    """A job that asks for `parameters`; times are zero."""
    base = base_model()
    request = GenerateRequest.model_validate({"inputs": prompt, "parameters": parameters})
    assert request.parameters is not None
    sampling = {} if seed is None else {"seed": seed}
    return TgiJob(
        context=RequestContext(cast(Backend, None), RENDERER, Settings(), Caller(), arrived=0.0),
        base=base,
        requests=[GenerationRequest(base.tokenizer.encode(prompt), sampling=sampling)],
        request=request,
        parameters=request.parameters,
        checked=0.0,
    )

"""The ways of asking for a text, each to its end: the gateway's APIs, Triton over HTTP and gRPC.

Each gives the text, or the answer that there was instead.
"""

import json

from multilora_client import MultiLoRAClient, MultiLoRAError
from torture.findings import Unexplained
from torture.server import Example, ServerUnderTest
from torture.speak import Answer, call

_TOKENS = 200
_STATUS = {"NOT_FOUND": 404, "CANCELLED": 499, "UNAVAILABLE": 503, "INVALID_ARGUMENT": 400}


def tgi(server: ServerUnderTest, example: Example, adapter_id: str) -> str | Answer:
    answer = server.ask(example, adapter_id)
    return answer.json()["generated_text"] if answer.status == 200 else answer


def tgi_stream(server: ServerUnderTest, example: Example, adapter_id: str) -> str | Answer:
    parameters = {"adapter_id": adapter_id, "max_new_tokens": _TOKENS}
    body = {"inputs": example.prompt, "parameters": parameters}
    answer = call(server.gateway, "POST", "/generate_stream", body)
    last = answer.body.strip().rpartition(b"data:")[2]
    if answer.status != 200 or b'"error"' in last[:10]:  # an error of a stream is its last event
        status = 404 if b"not_found" in last else answer.status if answer.status != 200 else 424
        return Answer(status, answer.headers, last)
    return json.loads(last)["generated_text"]


def openai(server: ServerUnderTest, example: Example, adapter_id: str) -> str | Answer:
    body = {"prompt": example.prompt, "max_tokens": _TOKENS, "temperature": 0}
    body["model"] = adapter_id or "multilora-demo"
    answer = call(server.gateway, "POST", "/v1/completions", body)
    return answer.json()["choices"][0]["text"] if answer.status == 200 else answer


def ensemble(server: ServerUnderTest, example: Example, adapter_id: str) -> str | Answer:
    """Triton's own /generate."""
    body = {"text_input": example.prompt, "adapter_id": adapter_id, "max_tokens": _TOKENS}
    answer = call(server.triton, "POST", "/v2/models/multilora/generate", body)
    return answer.json()["text_output"] if answer.status == 200 else answer


def grpc(server: ServerUnderTest, example: Example, adapter_id: str) -> str | Answer:
    try:
        with MultiLoRAClient(server.grpc, timeout=60) as client:
            stream = client.stream(example.prompt, adapter_id=adapter_id, max_tokens=_TOKENS)
            return "".join(stream)
    except MultiLoRAError as error:
        if error.code not in _STATUS:
            raise Unexplained(f"{error.code}: {error}") from None
        return Answer(_STATUS[error.code], {"retry-after": "in the code"}, str(error).encode())


WAYS = (tgi, tgi_stream, openai, ensemble, grpc)

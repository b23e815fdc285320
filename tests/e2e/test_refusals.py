"""Refusals that coincide with the responder's look at its clients: the server must live on."""

from concurrent.futures import ThreadPoolExecutor

from launcher.triton.server import TritonServer
from support.e2e.triton import grpc_error, grpc_text, post, token_ids


def test_many_refusals_at_once(server: TritonServer) -> None:
    ids = token_ids(server, "hello")
    wrong = [
        ("multilora_llm", {"input_ids": ids, "adapter_id": "nobody", "stream": True}),
        ("multilora_llm", {"input_ids": ids, "max_tokens": 5000, "stream": True}),
        ("multilora_llm", {"input_ids": [-1], "stream": True}),
    ]
    with ThreadPoolExecutor(8) as threads:
        errors = list(threads.map(lambda case: grpc_error(server, *case), wrong * 40))
    assert {code for code, _ in errors} == {"NOT_FOUND", "INVALID_ARG"}
    body = {"text_input": "hello", "adapter_id": "nobody"}
    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(lambda _: post(server, body)[0], range(100)))
    assert 200 not in statuses
    assert grpc_text(server, input_ids=ids, max_tokens=20) == "hello"

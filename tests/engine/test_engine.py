"""The whole engine on a tiny random base model, in process: tokens and memory."""

import queue
import threading
import time

import pytest
import torch

from multilora.config import EngineConfig
from multilora.engine import Engine
from multilora.errors import RequestError
from multilora.request import FinishReason
from support.engine.requests import (
    RANKS,
    MakeEngine,
    alone,
    assert_all_free,
    drain,
    request,
    tokens,
)


def test_a_crowd_answers_as_each_request_does_alone(make_engine: MakeEngine):
    engine = make_engine()
    requests = [
        request(
            f"{adapter or 'base'}-{length}-{i}",
            adapter,
            length,
            seed=i,
            temperature=0.8 if i % 3 == 0 else 0.0,
        )
        for i, (adapter, length) in enumerate(
            (adapter, length) for adapter in ["", *RANKS] for length in (3, 17, 40)
        )
    ]
    answers = alone(engine, requests)
    assert (
        len({tuple(answers[f"{a or 'base'}-17-{3 * i + 1}"]) for i, a in enumerate(["", *RANKS])})
        == 7
    ), "adapters must differ"
    for one in requests:
        engine.submit(one)
    crowd = drain(engine, len(requests))
    assert {name: tokens(outputs) for name, outputs in crowd.items()} == answers
    assert engine.metrics()["multilora_max_adapters_in_batch"] == len(RANKS)
    assert_all_free(engine)


def test_a_cached_prefix_gives_the_same_tokens(make_engine: MakeEngine):
    engine = make_engine()
    first = alone(engine, [request("x1", "b", 50)])
    before = engine.metrics()["multilora_cached_prompt_tokens_total"]
    again = alone(engine, [request("x2", "b", 50)])
    assert again["x2"] == first["x1"]
    assert engine.metrics()["multilora_cached_prompt_tokens_total"] - before == 48


def test_abort_at_any_time_frees_everything(make_engine: MakeEngine):
    engine = make_engine()
    for i in range(8):
        engine.submit(request(f"r{i}", "abcdef"[i % 6], max_tokens=200))
    engine.submit(request("kept", "a", max_tokens=30))
    for i in range(8):
        engine.abort(f"r{i}")
        time.sleep(0.002)
    outputs = drain(engine, 9)
    reasons = [outputs[f"r{i}"][-1].finish_reason for i in range(8)]
    assert set(reasons) <= {FinishReason.CANCELLED, FinishReason.LENGTH}
    assert FinishReason.CANCELLED in reasons
    assert len(tokens(outputs["kept"])) == 30
    assert_all_free(engine)


def test_only_the_engine_thread_computes_with_several_threads(make_engine: MakeEngine):
    """OpenMP's workers wait without sleeping while all teams together are no larger than that."""
    before = torch.get_num_threads()
    try:
        engine = make_engine(threads=3)
        seen: queue.SimpleQueue[int] = queue.SimpleQueue()
        engine._inbox.put(lambda: seen.put(torch.get_num_threads()))
        assert seen.get(timeout=10) == 3
        other = threading.Thread(target=lambda: seen.put(torch.get_num_threads()))
        other.start()
        assert seen.get(timeout=10) == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_stop_token_ends_an_answer(make_engine: MakeEngine):
    engine = make_engine()
    free = alone(engine, [request("same", "a")])["same"]
    last = next(token for token in free[4:] if token not in free[:4])
    for stops, length in (((last,), free.index(last) + 1), ((last, free[0]), 1)):
        engine.submit(request("same", "a", stop_token_ids=stops))
        outputs = drain(engine, 1)["same"]
        assert tokens(outputs) == free[:length]
        assert outputs[-1].finish_reason is FinishReason.STOP
    engine.submit(request("same", "a", stop_token_ids=(free[0],), min_tokens=2))
    assert tokens(drain(engine, 1)["same"])[0] != free[0], "it cannot come before min_tokens"
    with pytest.raises(RequestError, match="stop_token_ids holds 9999"):
        engine.submit(request("same", "a", stop_token_ids=(9999,)))


def test_dtype_auto_is_float32_on_a_cpu():
    """The demo's checkpoint is bfloat16, whose rounding would depend on the batch."""
    engine = Engine(EngineConfig(device="cpu"))
    assert engine.base.dtype == "bfloat16"
    assert engine._parts.runner.dtype == torch.float32
    engine.close()

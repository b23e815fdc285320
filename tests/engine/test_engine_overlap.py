"""The engine a pass ahead of its device: the answers are those of an engine that waits."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from multilora.config import EngineConfig
from multilora.engine import Engine
from multilora.forward.runner import ModelRunner
from multilora.request import FinishReason, Request, TokenOutput
from multilora.scheduling.batch import Batch
from multilora_api.sampling import PARAMETERS, Grammar, SamplingParams
from support.engine.late_runner import LateInFlight, LateRunner
from support.engine.requests import (
    RANKS,
    MakeEngine,
    alone,
    assert_all_free,
    block_bytes,
    drain,
    page_bytes,
    prompt_of,
    raises_once,
    request,
    run,
    tokens,
)

# Of each request; what the engine does not see (what becomes of the text) is not listed.
OPTIONS: list[dict[str, Any]] = [
    {"max_tokens": 1},
    {"temperature": 0.9, "seed": 5},
    {"temperature": 1.2, "seed": 5, "top_k": 9},
    {"temperature": 1.2, "seed": 6, "top_p": 0.7, "min_p": 0.02},
    {"temperature": 1.1, "seed": 7, "typical_p": 0.6},
    {"repetition_penalty": 1.4, "ignore_eos": True},
    {"presence_penalty": 1.5, "temperature": 0.8, "seed": 1},
    {"frequency_penalty": 1.5, "ignore_eos": True},
    {"min_tokens": 12},
    {"stop_token_ids": tuple(range(97, 105)), "min_tokens": 3},
    {"allowed_token_ids": tuple(range(97, 123)), "temperature": 1.0, "seed": 3},
    {"logit_bias": ((101, 4.0), (32, -100.0)), "temperature": 1.0, "seed": 4},
    {"logprobs": 3},
    {"logprobs": 0, "temperature": 1.0, "seed": 8},
    {"grammar": Grammar("regex", "(yes|no|maybe){1,4}"), "temperature": 1.0, "seed": 9},
    {"bad_words": ("e", "th"), "ignore_eos": True},
    {"ignore_eos": True, "max_tokens": 40},
    {"prompt_logprobs": 2},
    {"prompt_logprobs": 0, "max_tokens": 0},
    {"max_tokens": 0},
]
OF_THE_TEXT = {"stop", "include_stop_str_in_output", "skip_special_tokens"}
BANNED = ((101,), (116, 104))  # "e" and "th", as intake makes them of bad_words


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that are made now run ahead of a late device."""
    monkeypatch.setattr("multilora.startup.build.ModelRunner", LateRunner)


def late_runner(engine: Engine) -> LateRunner:
    runner = engine._parts.runner
    assert isinstance(runner, LateRunner)
    return runner


def submit_together(engine: Engine, *requests: Request) -> None:
    """So that they are in the same pass: the engine thread itself submits them."""

    def submit() -> None:
        for one in requests:
            engine.submit(one)

    engine._inbox.put(submit)


def every_option() -> Iterator[Request]:
    adapters = ("", "upper", "rot13", "sql")
    for index, options in enumerate(OPTIONS):
        prompt = tuple(f"Hello {index}, what is it?".encode())
        sampling = SamplingParams(**{"max_tokens": 16, **options})
        banned = BANNED if sampling.bad_words else ()
        yield Request(str(index), prompt, adapters[index % 4], sampling, banned=banned)


def answers_of_the_demo() -> tuple[Engine, dict[str, list[TokenOutput]]]:
    engine = Engine(EngineConfig(device="cpu", threads=1, max_batch_prefill_tokens=32))
    try:
        for one in every_option():
            if one.sampling.grammar:
                engine.compile(one.sampling.grammar)
            engine.submit(one)
        engine.start()
        outputs = drain(engine, len(OPTIONS))
        assert_all_free(engine)
        return engine, outputs
    finally:
        engine.close()


def test_every_sampling_option_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {name for options in OPTIONS for name in options} == PARAMETERS.keys() - OF_THE_TEXT
    _, waiting = answers_of_the_demo()
    monkeypatch.setattr("multilora.startup.build.ModelRunner", LateRunner)
    engine, ahead = answers_of_the_demo()
    assert late_runner(engine).most_in_flight == 2
    assert ahead.keys() == waiting.keys()
    for name, outputs in waiting.items():
        assert tokens(ahead[name]) == tokens(outputs), OPTIONS[int(name)]
        assert ahead[name][-1].finish_reason is outputs[-1].finish_reason
        assert_same_reports(ahead[name], outputs)


def assert_same_reports(some: list[TokenOutput], others: list[TokenOutput]) -> None:
    """Of prompts, in whatever parts these were computed, and of tokens."""
    reports = [[*prompt_of(each), *(o for o in each if not o.prompt)] for each in (some, others)]
    for one, other in zip(*reports, strict=True):
        assert (one.token_id, one.rank) == (other.token_id, other.rank)
        assert one.logprob == pytest.approx(other.logprob, abs=5e-4)
        assert [i for i, _ in one.top_logprobs] == [i for i, _ in other.top_logprobs]


def test_a_cpu_computes_a_pass_at_a_time(make_engine: MakeEngine) -> None:
    assert make_engine()._parts.runner.depth == 1


def test_a_crowd_with_too_few_pages_and_blocks_answers_as_each_does_alone(
    make_engine: MakeEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass at a time, and a pass ahead; some prompts are scored, and some answers are empty."""
    requests = [
        request(
            f"r{i}", ["", *RANKS][i % 7], 20 + i, max_tokens=0 if i % 5 == 0 else 30,
            ignore_eos=i % 2 == 0, prompt_logprobs=2 if i % 3 == 0 else None,
        )
        for i in range(18)
    ]  # fmt: skip
    roomy = make_engine()
    answers = {one.request_id: run(roomy, one)[one.request_id] for one in requests}
    for runner in (ModelRunner, LateRunner):
        monkeypatch.setattr("multilora.startup.build.ModelRunner", runner)
        small = make_engine(
            adapter_memory=5 * page_bytes(folder),
            kv_cache_memory=16 * block_bytes(folder),
            adapter_host_memory=1,
            max_batch_prefill_tokens=24,
        )
        crowd = run(small, *requests)
        for name, outputs in crowd.items():
            assert tokens(outputs) == tokens(answers[name])
            assert_same_reports(outputs, answers[name])
        figures = small.metrics()
        assert figures["multilora_preemptions_total"] > 0
        assert figures["multilora_adapter_evictions_total"] > 0
        assert_all_free(small)
    assert late_runner(small).most_in_flight == 2


def test_aborts_while_two_passes_are_in_flight_free_everything(
    make_engine: MakeEngine, late: None
) -> None:
    engine = make_engine()
    for i in range(8):
        engine.submit(request(f"r{i}", "abcdef"[i % 6], max_tokens=200))
    engine.submit(request("kept", "a", max_tokens=30))
    seen: list[TokenOutput] = []
    for i in range(8):
        seen += engine.outputs.get(timeout=60) or []
        engine.abort(f"r{i}")
        engine.submit(request(f"again{i}", "abcdef"[i % 6], max_tokens=5))
    ended = drain(engine, 17 - sum(output.finish_reason is not None for output in seen))
    for output in seen:
        ended.setdefault(output.request_id, []).append(output)
    reasons = {name: [output.finish_reason for output in ended[name]] for name in ended}
    for i in range(8):
        assert reasons[f"r{i}"].count(None) == len(reasons[f"r{i}"]) - 1
        assert FinishReason.CANCELLED in reasons[f"r{i}"]
        assert len(tokens(ended[f"again{i}"])) == 5
    assert len(tokens(ended["kept"])) == 30
    assert_all_free(engine)


def test_the_row_behind_the_last_end_is_read_before_the_engine_sleeps(
    make_engine: MakeEngine, late: None
) -> None:
    engine = make_engine()
    free = alone(engine, [request("same", "a")])["same"]
    engine.submit(request("same", "a", stop_token_ids=(free[4],)))
    outputs = drain(engine, 1)["same"]
    assert tokens(outputs) == free[: free.index(free[4]) + 1]
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert_all_free(engine)


def test_the_engine_does_not_sleep_while_a_row_waits_for_its_token(
    make_engine: MakeEngine, late: None
) -> None:
    """Asleep it would look again after a second."""
    engine = make_engine()
    bound = replace(request("bound", max_tokens=40), banned=((5, 6),))
    start = time.monotonic()
    assert len(alone(engine, [bound])["bound"]) == 40
    assert time.monotonic() - start < 20


def test_a_pass_that_fails_takes_the_one_behind_it_along_and_nothing_else(
    make_engine: MakeEngine, late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt of "r2" is in the second pass alone, "waits" in neither."""
    engine = make_engine(max_running_requests=2, max_batch_prefill_tokens=12)
    raises_once(monkeypatch, LateInFlight, "tokens", RuntimeError("an illegal memory access"))
    submit_together(engine, *(request(name, "a") for name in ("r1", "r2", "waits")))
    outputs = drain(engine, 3)
    for name in ("r1", "r2"):
        error = outputs[name][-1].error
        assert error is not None and "illegal" in str(error)
    assert outputs["waits"][-1].finish_reason is FinishReason.LENGTH
    assert_all_free(engine)


def test_a_launch_that_fails_leaves_the_pass_before_it_alone(
    make_engine: MakeEngine, late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request's last token is in flight when the launch of another's next row fails."""
    engine = make_engine()

    def goes_alone(_: ModelRunner, batch: Batch, *__: object) -> bool:
        return {item.sequence.request.request_id for item in batch.items} == {"goes"}

    raises_once(monkeypatch, ModelRunner, "_prepare", RuntimeError("out of memory"), goes_alone)
    submit_together(engine, request("last", max_tokens=3), request("goes"))
    outputs = drain(engine, 2)
    assert outputs["last"][-1].finish_reason is FinishReason.LENGTH
    assert len(tokens(outputs["last"])) == 3
    assert "out of memory" in str(outputs["goes"][-1].error)
    assert len(tokens(outputs["goes"])) == 2, "its third would have come of the pass in flight"
    assert len(alone(engine, [request("after", "b")])["after"]) == 12
    assert_all_free(engine)

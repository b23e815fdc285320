"""The whole engine on a tiny random base model, in process: tokens, memory, faults."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from multilora.adapter_pages import AdapterPages
from multilora.base_config import BaseConfig
from multilora.config import EngineConfig
from multilora.engine import Engine
from multilora.errors import ErrorCode, RequestError, StartupError
from multilora.kv_cache import KVCache
from multilora.request import FinishReason, Request, SamplingParams, TokenOutput
from tiny import write_adapter, write_base

RANKS = {"a": 4, "b": 8, "c": 16, "d": 24, "e": 40, "f": 64}
MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    write_base(root / "base")
    for seed, (name, rank) in enumerate(RANKS.items()):
        write_adapter(root / name, seed=seed + 1, rank=rank)
    return root


@pytest.fixture
def make_engine(folder: Path) -> Iterator[MakeEngine]:
    engines: list[Engine] = []

    def make(adapters: dict[str, Path] | None = None, **settings: int) -> Engine:
        paths = adapters or {name: folder / name for name in RANKS}
        listed = ",".join(f"{name}={path}" for name, path in paths.items())
        sizes: dict[str, Any] = {"kv_cache_memory": 1 << 22, "adapter_memory": 1 << 24, **settings}
        config = EngineConfig(
            model_id=str(folder / "base"),
            lora_adapters=listed,
            dtype="float32",
            device="cpu",
            threads=1,
            **sizes,
        )
        engines.append(Engine(config))
        engines[-1].start()
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def request(name: str, adapter: str = "", length: int = 12, **sampling: object) -> Request:
    start = sum(map(ord, name.rstrip("0123456789")))
    prompt = tuple((start + 7 * i) % 120 + 4 for i in range(length))
    values = {"max_tokens": 12, "ignore_eos": True} | sampling
    return Request(name, prompt, adapter, SamplingParams(**values))  # type: ignore[arg-type]


def drain(engine: Engine, count: int) -> dict[str, list[TokenOutput]]:
    """Outputs by request until `count` requests have ended."""
    outputs: dict[str, list[TokenOutput]] = {}
    while count:
        batch = engine.outputs.get(timeout=60)
        assert batch is not None
        for output in batch:
            outputs.setdefault(output.request_id, []).append(output)
            count -= output.finish_reason is not None
    return outputs


def tokens(outputs: list[TokenOutput]) -> list[int]:
    return [output.token_id for output in outputs if output.token_id is not None]


def assert_all_free(engine: Engine) -> None:
    deadline = time.monotonic() + 5
    names = ("running_requests", "waiting_requests", "kv_blocks_used", "adapter_references")
    left: dict[str, float] = {}
    while time.monotonic() < deadline:
        left = {name: engine.metrics()[f"multilora_{name}"] for name in names}
        if not any(left.values()):
            return
        time.sleep(0.01)
    pytest.fail(f"still held: {left}")


def alone(engine: Engine, requests: list[Request]) -> dict[str, list[int]]:
    answers = {}
    for one in requests:
        engine.submit(one)
        answers[one.request_id] = tokens(drain(engine, 1)[one.request_id])
    return answers


def page_bytes(folder: Path) -> int:
    return AdapterPages.bytes_per_page(BaseConfig.from_folder(folder / "base"), torch.float32)


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


def test_more_adapters_than_room_and_fewer_blocks_than_wanted(
    make_engine: MakeEngine, folder: Path
):
    requests = [request(f"r{i}", ["", *RANKS][i % 7], 20 + i, max_tokens=40) for i in range(21)]
    answers = alone(make_engine(), requests)
    block = KVCache.bytes_per_block(BaseConfig.from_folder(folder / "base"), 16, torch.float32)
    small = make_engine(
        adapter_memory=5 * page_bytes(folder),
        kv_cache_memory=16 * block,
        adapter_host_memory=1,
        max_batch_prefill_tokens=24,
    )
    for one in requests:
        small.submit(one)
    crowd = drain(small, len(requests))
    assert {name: tokens(outputs) for name, outputs in crowd.items()} == answers
    figures = small.metrics()
    assert figures["multilora_preemptions_total"] > 0
    assert figures["multilora_adapter_evictions_total"] > 0
    assert_all_free(small)


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


@pytest.mark.parametrize(
    ("bad", "code", "words"),
    [
        (Request("r", ()), ErrorCode.INVALID_ARG, "input_ids is empty"),
        (Request("r", (5,) * 256), ErrorCode.INVALID_ARG, "max_input_tokens is 255"),
        (Request("r", (5,) * 250), ErrorCode.INVALID_ARG, "max_tokens to at most 6"),
        (Request("r", (5, 128)), ErrorCode.INVALID_ARG, "input_ids holds 128"),
        (Request("r", (-1, 5)), ErrorCode.INVALID_ARG, "input_ids holds -1"),
        (Request("r", (5,), "nobody"), ErrorCode.NOT_FOUND, "'nobody' is not registered"),
    ],
)
def test_bad_requests_are_refused_at_once(
    make_engine: MakeEngine, bad: Request, code: ErrorCode, words: str
):
    engine = make_engine()
    with pytest.raises(RequestError) as caught:
        engine.submit(bad)
    assert caught.value.code is code
    assert words in caught.value.message
    assert len(alone(engine, [request("fine", "a")])["fine"]) == 12


def test_too_many_requests_and_a_running_id(make_engine: MakeEngine):
    engine = make_engine(max_concurrent_requests=2)
    engine.submit(request("r1", max_tokens=200))
    with pytest.raises(RequestError, match="already running"):
        engine.submit(request("r1"))
    engine.submit(request("r2", max_tokens=200))
    with pytest.raises(RequestError) as caught:
        engine.submit(request("r3"))
    assert caught.value.code is ErrorCode.UNAVAILABLE
    drain(engine, 2)
    assert len(alone(engine, [request("r3")])["r3"]) == 12


def test_an_adapter_that_breaks_on_disk_fails_its_requests_only(
    make_engine: MakeEngine, folder: Path, tmp_path: Path
):
    paths = {name: write_adapter(tmp_path / name, seed=9, rank=16) for name in "xyz"}
    engine = make_engine(paths, adapter_memory=page_bytes(folder), adapter_host_memory=1)
    (paths["x"] / "adapter_model.safetensors").write_bytes(b"rubbish")
    for one in (request("x0", "x"), request("y0", "y"), request("base")):
        engine.submit(one)
    outputs = drain(engine, 3)
    if outputs["x0"][-1].error is None:  # x was still in the pool: the others pushed it out
        engine.submit(request("x1", "x"))
        outputs |= {"x0": drain(engine, 1)["x1"]}
    error = outputs["x0"][-1].error
    assert error is not None and "adapter_model.safetensors" in error.message
    assert len(tokens(outputs["y0"])) == len(tokens(outputs["base"])) == 12
    assert_all_free(engine)


def test_a_failed_forward_pass_ends_its_requests_and_the_engine_goes_on(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
):
    engine = make_engine()
    runner = engine._parts.runner
    real, failures = runner.run, iter([RuntimeError("out of memory")])

    def run_once_broken(batch: object) -> object:
        for failure in failures:
            raise failure
        return real(batch)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "run", run_once_broken)
    engine.submit(request("r1", "a"))
    error = drain(engine, 1)["r1"][-1].error
    assert error is not None and error.code is ErrorCode.INTERNAL and "out of memory" in str(error)
    assert len(alone(engine, [request("r2", "a")])["r2"]) == 12
    assert_all_free(engine)


def test_close_ends_what_runs_and_refuses_more(make_engine: MakeEngine):
    engine = make_engine()
    engine.submit(request("r1", "a", max_tokens=200))
    engine.close()
    outputs: list[TokenOutput] = []
    while (batch := engine.outputs.get(timeout=10)) is not None:
        outputs += batch
    assert outputs[-1].error is not None or outputs[-1].finish_reason is FinishReason.LENGTH
    with pytest.raises(RequestError, match="shutting down"):
        engine.submit(request("r2"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kv_cache_memory": 1024}, ["kv_cache_memory", "--max-total-tokens"]),
        ({"adapter_memory": 1024}, ["adapter_memory", "one page"]),
        ({"max_total_tokens": 1000}, ["max_position_embeddings 256"]),
        ({"max_lora_rank": 32}, ["adapter 'e'", "rank"]),
    ],
)
def test_startup_errors_are_one_clear_line(
    make_engine: MakeEngine, settings: dict[str, int], words: list[str]
):
    with pytest.raises(StartupError) as caught:
        make_engine(**settings)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_that_never_fits_is_refused(make_engine: MakeEngine, folder: Path):
    with pytest.raises(StartupError, match="--adapter-memory"):
        make_engine(adapter_memory=3 * page_bytes(folder))

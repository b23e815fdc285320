"""Log probabilities of prompts equal those of transformers and PEFT, however they are computed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from multilora.forward import sampling_input
from multilora.request import FinishReason, Request, TokenOutput
from support.engine.requests import (
    MakeEngine,
    assert_all_free,
    block_bytes,
    prompt_of,
    request,
    run,
    tokens,
)
from support.tiny.base import TABLES, write_adapter

Reference = Callable[[Request], torch.Tensor]


@pytest.fixture(scope="session", name="tables")
def adapter_of_both_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("tables"), seed=9, rank=20, tables=tuple(TABLES))


@pytest.fixture(scope="session", name="reference")
def log_softmax_of_peft(folder: Path, tables: Path) -> Reference:
    """A request → [prompt tokens, vocabulary], what is said after each token of its prompt."""
    models: dict[str, torch.nn.Module] = {}

    def of(asked: Request) -> torch.Tensor:
        name = asked.adapter_id
        if name not in models:
            model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
            adapter = tables if name == "tables" else folder / name
            models[name] = PeftModel.from_pretrained(model, adapter) if name else model
        with torch.no_grad():
            logits = models[name](torch.tensor([asked.prompt_token_ids])).logits[0]
        return logits.log_softmax(-1)

    return of


def scoring(name: str, adapter: str = "", length: int = 40, most: int = 3, **more: Any) -> Request:
    return request(name, adapter, length, prompt_logprobs=most, **more)


def near(expected: Any) -> Any:
    """Logits of the random base are up to 100, and float32 is as coarse."""
    return pytest.approx(expected, abs=5e-4)


def check(asked: Request, outputs: list[TokenOutput], reference: Reference) -> None:
    """Every token of the prompt but the first, once and in order."""
    told, said = prompt_of(outputs), reference(asked)
    assert tuple(token.token_id for token in told) == asked.prompt_token_ids[1:]
    most = asked.sampling.prompt_logprobs or 0
    for token, row in zip(told, said, strict=False):
        assert token.logprob == near(row[token.token_id].item())
        assert token.rank == int((row > row[token.token_id]).sum()) + 1
        values, ids = row.topk(most)
        assert [each for each, _ in token.top_logprobs] == ids.tolist()
        assert [value for _, value in token.top_logprobs] == near(values.tolist())


def test_prompts_of_a_mixed_crowd_in_chunks(
    make_engine: MakeEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling_input, "_PROMPT_ROWS_AT_ONCE", 5)
    scored = [
        scoring(f"{name}{most}", name, 20 + 7 * most, most)
        for most, name in enumerate(["", "a", "c", ""])
    ]
    others = [request(f"plain{name}", name, 30, logprobs=2) for name in ("", "a", "b")]
    engine = make_engine(max_batch_prefill_tokens=24)
    alone = run(engine, *others)
    crowd = run(engine, *scored, *others)
    for one in scored:
        check(one, crowd[one.request_id], reference)
        assert tokens(crowd[one.request_id]) == tokens(
            run(engine, request("same", one.adapter_id, prompt=one.prompt_token_ids))["same"]
        )
    for one in others:
        assert tokens(crowd[one.request_id]) == tokens(alone[one.request_id])
        assert prompt_of(crowd[one.request_id]) == []
    assert_all_free(engine)


def test_an_adapter_of_both_tables_scores_in_a_crowd(
    make_engine: MakeEngine,
    folder: Path,
    tables: Path,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling_input, "_PROMPT_ROWS_AT_ONCE", 5)
    engine = make_engine({"a": folder / "a", "tables": tables}, max_batch_prefill_tokens=24)
    scored = [scoring(f"{name}s", name, 23 + len(name)) for name in ("", "tables", "a")]
    crowd = run(engine, *scored, scoring("more", "tables", 37))
    for one in [*scored, scoring("more", "tables", 37)]:
        check(one, crowd[one.request_id], reference)
    assert_all_free(engine)


def test_a_cached_prefix_is_computed_again_and_stays_of_use(
    make_engine: MakeEngine, reference: Reference
) -> None:
    engine = make_engine()
    one, again = scoring("x1", "b", 50), scoring("x2", "b", 50)
    cached = [0.0]
    for each in (request("x0", "b", 50), one, again, request("x3", "b", 50)):
        outputs = run(engine, each)[each.request_id]
        if each.sampling.prompt_logprobs is not None:
            check(each, outputs, reference)
        cached.append(engine.metrics()["multilora_cached_prompt_tokens_total"])
    assert cached == [0, 0, 0, 0, 48]


def test_preempted_prompts_are_told_once(
    make_engine: MakeEngine, folder: Path, reference: Reference
) -> None:
    engine = make_engine(kv_cache_memory=16 * block_bytes(folder), max_batch_prefill_tokens=24)
    requests = [scoring(f"r{i}", ["", "a", "b"][i % 3], 40 + i, max_tokens=40) for i in range(9)]
    crowd = run(engine, *requests)
    assert engine.metrics()["multilora_preemptions_total"] > 0
    for one in requests:
        check(one, crowd[one.request_id], reference)
        assert len(tokens(crowd[one.request_id])) == 40
    assert_all_free(engine)


@pytest.mark.parametrize("length", [1, 2, 17, 60])
def test_without_max_tokens_the_prompt_is_the_end(
    make_engine: MakeEngine, reference: Reference, length: int
) -> None:
    engine = make_engine(max_batch_prefill_tokens=16)
    one = scoring("x", "a", length, max_tokens=0, min_tokens=0)
    outputs = run(engine, one)["x"]
    check(one, outputs, reference)
    assert tokens(outputs) == []
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert outputs[-1].queue_time is not None
    assert run(engine, request("y", max_tokens=0))["y"][-1].finish_reason is FinishReason.LENGTH
    assert_all_free(engine)

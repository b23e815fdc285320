"""Where answers end: at the end tokens of the base model's files, and of the adapter's own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from multilora.adapters.merging.recipe import parse_merge
from multilora.engine import Engine
from multilora.request import FinishReason, TokenOutput
from multilora_api.sampling import Grammar
from support.engine.requests import MakeEngine, ask, drain, request, tokens
from support.tiny.base import EOS, write_adapter
from support.tiny.tokenizers import byte_level

OWN = {"first": "a", "second": "b"}  # adapter → its end token, a letter, which any model may say
GRAMMAR = Grammar("regex", "(c|d)+")


def number(token: str) -> int:
    found = byte_level().token_to_id(token)
    assert found is not None
    return found


@pytest.fixture
def engine(folder: Path, make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Beside OWN the adapter "plain", which says nothing, and a base that ends at "e" too."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    root, base = tmp_path / "adapters", tmp_path / "base"
    shutil.copytree(folder / "base", base)
    byte_level().save(str(base / "tokenizer.json"))
    write_end(base, "e")
    for seed, name in enumerate((*OWN, "plain")):
        write_adapter(root / name, seed)
    for name, token in OWN.items():
        write_end(root / name, token)
    return make_engine({name: root / name for name in (*OWN, "plain")}, model_id=str(base))


def write_end(folder: Path, token: str) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))


def answer(engine: Engine, adapter: str, *forced: str, **sampling: Any) -> list[TokenOutput]:
    """Of a model that says one of `forced` in each place."""
    bias = tuple((number(token), 100.0) for token in forced)
    values = {"max_tokens": 5, "ignore_eos": False, "logit_bias": bias, **sampling}
    engine.submit(request("r", adapter, **values))
    return drain(engine, 1)["r"]


def ends(engine: Engine, adapter: str, token: str, **sampling: Any) -> bool:
    """Whether the first token ends the answer."""
    outputs = answer(engine, adapter, token, **sampling)
    assert tokens(outputs)[0] == number(token)
    stopped = len(tokens(outputs)) == 1
    assert (outputs[-1].finish_reason is FinishReason.STOP) is stopped
    return stopped


def test_an_answer_ends_at_its_own_adapters_end_token_and_at_the_bases(engine: Engine) -> None:
    found = {
        adapter: {token for token in "abcde" if ends(engine, adapter, token)}
        for adapter in (*OWN, "plain", "")
    }
    assert found == {"first": {"a", "e"}, "second": {"b", "e"}, "plain": {"e"}, "": {"e"}}
    outputs = answer(engine, "first", logit_bias=((EOS, 100.0),))
    assert tokens(outputs) == [EOS], "that of config.json counts, too"


def test_ignore_eos_and_min_tokens_count_for_it(engine: Engine) -> None:
    assert not ends(engine, "first", "a", ignore_eos=True)
    assert ends(engine, "first", "a", stop_token_ids=(number("a"),), ignore_eos=True)
    for end in "ae":
        biased = ((number(end), 100.0), (number("c"), 50.0))
        outputs = answer(engine, "first", logit_bias=biased, min_tokens=2)
        assert tokens(outputs) == [number("c"), number("c"), number(end)]
        assert outputs[-1].finish_reason is FinishReason.STOP


def test_a_grammar_that_may_end_may_end_with_it(engine: Engine) -> None:
    biased = ((number("a"), 100.0), (number("c"), 50.0))
    outputs = answer(engine, "first", grammar=GRAMMAR, logit_bias=biased)
    assert tokens(outputs) == [number("c"), number("a")]
    assert outputs[-1].finish_reason is FinishReason.STOP
    outputs = answer(engine, "second", grammar=GRAMMAR, logit_bias=biased)
    assert tokens(outputs) == [number("c")] * 5, "it is the end of another adapter"


def test_an_end_token_within_a_grammar_is_none(engine: Engine) -> None:
    """A letter that the grammar asks for must not end the answer before it is complete."""
    biased = ((number("a"), 100.0), (number("c"), 50.0))
    outputs = answer(engine, "first", grammar=Grammar("regex", "[ac]{3}"), logit_bias=biased)
    assert tokens(outputs)[:3] == [number("c")] * 3


def test_a_merge_ends_where_any_of_its_parts_does(engine: Engine, tmp_path: Path) -> None:
    def merged(*ids: str) -> str:
        return ask(engine, "merge", merge=parse_merge({"ids": list(ids)}))["id"]

    name = merged(*OWN)
    assert {token for token in "abcde" if ends(engine, name, token)} == {"a", "b", "e"}
    assert not ends(engine, merged("plain"), "a")
    assert merged(*OWN) == name
    write_end(tmp_path / "adapters/second", "d")
    changed = merged(*OWN)
    assert {token for token in "abcde" if ends(engine, changed, token)} == {"a", "d", "e"}


def test_changed_text_counts_though_the_weights_stay(engine: Engine, tmp_path: Path) -> None:
    before = ask(engine, "info", "first")["digest"]
    write_end(tmp_path / "adapters/first", "c")
    ask(engine, "load", "first")
    assert {token for token in "ac" if ends(engine, "first", token)} == {"c"}
    assert ask(engine, "info", "first")["digest"] == before


def test_a_folders_generation_config_counts(engine: Engine, tmp_path: Path) -> None:
    config = {"eos_token_id": [number("d"), 10**6], "temperature": 2.0}
    (tmp_path / "adapters/plain/generation_config.json").write_text(json.dumps(config))
    ask(engine, "load", "plain")
    assert ends(engine, "plain", "d")
    assert len(answer(engine, "plain", "d", min_tokens=2)) > 1

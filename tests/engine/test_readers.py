"""Whatever text or JSON comes from outside, its reader raises nothing but its own error."""

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.flags import parse_flags
from multilora.adapters.checkpoint.peft_config import parse_config
from multilora.adapters.merging.recipe import parse_merge
from multilora.adapters.naming.flag import parse_lora_adapters
from multilora.base_model.config import NativeConfig
from multilora.config import DEMO, EngineConfig
from multilora.errors import RequestError, StartupError
from multilora.wire.prompt import parse_messages
from multilora.wire.sampling_parameters import parse_sampling_parameters, sampling_params
from multilora_gateway.settings import parse_settings
from support.laws import LAW

EXTREMES = st.sampled_from([None, 10**400, -(10**400), -(2**63) - 1, 1e308, 0, float("nan")])
VALUES = st.recursive(
    st.one_of(EXTREMES, st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
LEAVES = st.one_of(VALUES, st.sampled_from(["auto", "json", "regex", "list", "load", "x@y", "/x"]))


def fields_of(*names: str) -> st.SearchStrategy[str]:
    """JSON objects with some of these names, and texts that are no JSON."""
    objects = st.dictionaries(st.sampled_from(names), LEAVES, max_size=4).map(json.dumps)
    broken = st.one_of(st.text(max_size=30), st.just("[" * 100_000), st.just("9" * 5000))
    return st.one_of(objects, broken)


def sampling(text: str) -> None:
    sampling_params(parse_sampling_parameters(text))


SAMPLING = ("max_tokens", "temperature", "top_k", "seed", "stop", "logit_bias", "grammar",
            "logprobs", "stop_token_ids", "ignore_eos")  # fmt: skip
PEFT = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "bias",
        "use_rslora", "init_lora_weights", "modules_to_save")  # fmt: skip
MERGE = ("ids", "weights", "merge_strategy", "density", "majority_sign_method")


@pytest.mark.parametrize(
    ("read", "names"),
    [
        (sampling, SAMPLING),
        (parse_merge, MERGE),
        (parse_messages, ("role", "content")),
        (lambda text: parse_config(text.encode(errors="surrogatepass")), PEFT),
    ],
    ids=["sampling_parameters", "merge", "messages", "adapter_config.json"],
)
def test_what_requests_and_adapters_bring(
    read: Callable[[str], object], names: tuple[str, ...]
) -> None:
    @LAW
    @given(fields_of(*names))
    def law(text: str) -> None:
        with contextlib.suppress(RequestError):
            read(text)

    law()


BASE = ("hidden_size", "rope_theta", "rope_scaling", "rms_norm_eps", "head_dim", "eos_token_id",
        "num_key_value_heads", "tie_word_embeddings", "sliding_window", "dtype")  # fmt: skip


@settings(LAW, max_examples=150)
@given(st.dictionaries(st.sampled_from(BASE), st.one_of(EXTREMES, VALUES), max_size=2))
def test_the_config_of_a_base_model(changes: dict[str, Any]) -> None:
    right = json.loads((DEMO / "base/config.json").read_text())
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(StartupError):
        (Path(folder) / "config.json").write_text(json.dumps({**right, **changes}))
        NativeConfig.from_folder(folder)


TEXTS = st.one_of(
    st.text(max_size=12), st.sampled_from(["9" * 400 + "GiB", "9" * 5000, "1e999", "nan", "-0"])
)


@LAW
@given(st.sampled_from([field.name for field in fields(EngineConfig)]), TEXTS)
def test_settings_of_the_engine(name: str, text: str) -> None:
    with contextlib.suppress(StartupError):
        EngineConfig.from_settings({}, {name.upper(): text})


@LAW
@given(TEXTS)
def test_lora_adapters(text: str) -> None:
    with contextlib.suppress(StartupError):
        parse_lora_adapters(text)


@LAW
@given(st.lists(st.one_of(TEXTS, st.sampled_from(["--port", "--api-key", "--admin-key=", "-p"]))))
def test_command_lines(words: list[str]) -> None:
    for read in (parse_flags, parse_settings):
        said = io.StringIO()
        quietly = contextlib.redirect_stderr(said), contextlib.redirect_stdout(said)
        with contextlib.suppress(SystemExit), quietly[0], quietly[1]:
            read(words, {})

"""Which adapter a model's name means; whether there is one is the engine's to say."""

import dataclasses

import pytest

from e2e_tools import DEMO
from multilora_gateway.base_model import BaseModel
from multilora_gateway.openai_resolve import named_adapter, served_name
from multilora_gateway.settings import Settings
from multilora_text.tokenizer import Tokenizer

NAMED = Settings(served_model_name="short")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return BaseModel(
        model_id="org/base:v1",
        model_sha=None,
        dtype="float32",
        device="cpu",
        max_input_tokens=10,
        max_total_tokens=16,
        max_batch_prefill_tokens=16,
        max_concurrent_requests=1,
        max_lora_rank=8,
        vocab_size=272,
        eos_token_ids=frozenset({257}),
        tokenizer=Tokenizer.from_folder(DEMO / "base"),
    )


@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        ("org/base:v1", ""),
        ("short", ""),
        ("org/base:v1:sql", "sql"),
        ("short:org/sql", "org/sql"),
        ("short:s3://bucket/sql", "s3://bucket/sql"),
        ("sql", "sql"),
        ("org/base", "org/base"),
        ("shorter", "shorter"),
        ("nobody:sql", "nobody:sql"),
        ("SHORT", "SHORT"),
    ],
)
def test_a_name_is_the_base_or_an_adapter(base: BaseModel, model: str, adapter: str) -> None:
    assert named_adapter(model, NAMED, base) == adapter


def test_the_base_is_called_as_it_was_named(base: BaseModel) -> None:
    assert served_name(NAMED, base) == "short"
    assert served_name(dataclasses.replace(NAMED, served_model_name=""), base) == "org/base:v1"

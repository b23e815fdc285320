"""Prompts are scored, and messages continued, as clients ask for it over HTTP: as transformers and
PEFT do it."""

import json
from typing import Any, cast

import pytest
import text_generation
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from openai import OpenAI
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.e2e.openai import post, say
from support.e2e.tgi import SECONDS
from support.e2e.tgi import post as post_tgi
from support.e2e.triton import DEMO

BASE = DEMO / "base"
ADAPTER = "upper"
QUESTIONS = {
    "Question: What do plants make sugar of?\nAnswer:": [" light", " STONES", " 月", " a"],
    "Question: hello world\nAnswer:": [" HELLO WORLD", " hello world"],
    "hello world": [" hello world", "!"],
}


class Reference:
    """The demo in transformers and PEFT."""

    def __init__(self) -> None:
        model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        self._model = PeftModel.from_pretrained(model, DEMO / "adapters" / ADAPTER)
        self.tokenizer = AutoTokenizer.from_pretrained(BASE)

    def log_softmax(self, name: str, ids: list[int]) -> torch.Tensor:
        """[tokens, vocabulary], what is said after each of them."""
        with torch.no_grad():
            if name == ADAPTER:
                return self._model(torch.tensor([ids])).logits[0].log_softmax(-1)
            with self._model.disable_adapter():
                return self._model(torch.tensor([ids])).logits[0].log_softmax(-1)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def near(expected: Any) -> Any:
    return pytest.approx(expected, abs=1e-4, rel=1e-5)


@pytest.mark.parametrize("adapter", [None, ADAPTER])
def test_lm_eval_scores_as_transformers_does(
    gateway: str, base: str, reference: Reference, adapter: str | None
) -> None:
    model = cast(Any, LocalCompletionsAPI)(  # its registry types every model alike
        model=adapter or base,
        base_url=f"{gateway}/v1/completions",
        tokenizer=str(BASE),
        batch_size=3,
        max_retries=1,
    )
    pairs = [(question, each) for question, answers in QUESTIONS.items() for each in answers]
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    greedy: list[bool] = []
    for pair, (logprob, is_greedy) in zip(pairs, model.loglikelihood(asked), strict=True):
        context, answer = model._encode_pair(*pair)
        said = reference.log_softmax(adapter or "", context + answer)[len(context) - 1 : -1]
        want = said[torch.arange(len(answer)), answer].sum().item()
        assert logprob == near(want), pair
        assert is_greedy == (said.argmax(-1).tolist() == answer), pair
        greedy.append(is_greedy)


@pytest.mark.parametrize("model", ["", ADAPTER])
def test_an_echo_with_log_probabilities(
    openai_client: OpenAI, base: str, reference: Reference, model: str
) -> None:
    asked: Any = {"model": model or base, "prompt": "hello wörld", "echo": True, "logprobs": 2}
    whole = openai_client.completions.create(**asked, max_tokens=0)
    (choice,) = whole.choices
    assert (choice.text, choice.finish_reason) == (asked["prompt"], "length")
    ids = reference.tokenizer(asked["prompt"]).input_ids
    assert whole.usage and (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (
        len(ids),
        0,
    )
    said, told = reference.log_softmax(model, ids), choice.logprobs
    assert told and told.tokens and told.token_logprobs and told.top_logprobs and told.text_offset
    assert told.tokens[-1] == "<|assistant|>" and len(told.tokens) == len(ids)
    assert told.text_offset == [0, *range(8), 7, 8, 9, 10, len(asked["prompt"])]
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    assert told.token_logprobs[1:] == near(said[torch.arange(len(ids) - 1), ids[1:]].tolist())
    for row, top in zip(said, told.top_logprobs[1:], strict=False):
        assert sorted(top.values())[-2:] == near(row.topk(2).values.flip(0).tolist())
    more: Any = {**asked, "max_tokens": 3, "temperature": 0}
    answer = openai_client.completions.create(**more).choices[0]
    chunks = [chunk.choices[0] for chunk in openai_client.completions.create(**more, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert answer.logprobs and answer.logprobs.token_logprobs
    streamed = [each for c in chunks if c.logprobs for each in c.logprobs.token_logprobs or []]
    assert streamed == answer.logprobs.token_logprobs and len(streamed) == len(ids) + 3


def test_prompt_logprobs_of_completions_and_chats(
    openai_client: OpenAI, base: str, reference: Reference
) -> None:
    ask = openai_client.with_options(max_retries=0)
    extra: Any = {"extra_body": {"prompt_logprobs": 1, "return_token_ids": True}}
    text: Any = ask.completions.create(model=base, prompt=["hé", "b"], max_tokens=1, **extra)
    chat: Any = ask.chat.completions.create(model=base, messages=say("hé"), n=2, **extra)
    found = [(c.prompt_token_ids, c.prompt_logprobs) for c in text.choices]
    for ids, told in [*found, (chat.prompt_token_ids, chat.prompt_logprobs)]:
        assert told[0] is None and len(told) == len(ids)
        said = reference.log_softmax("", ids)
        for row, token_id, entries in zip(said, ids[1:], told[1:], strict=False):
            assert entries[str(token_id)]["logprob"] == near(row[token_id].item())
            assert entries[str(int(row.argmax()))]["rank"] == 1


def test_decoder_input_details_of_tgi(gateway: str, reference: Reference) -> None:
    parameters = {"decoder_input_details": True, "max_new_tokens": 1, "adapter_id": ADAPTER}
    answer = post_tgi(gateway, "/generate", {"inputs": "hello", "parameters": parameters}).json()
    prefill = answer["details"]["prefill"]
    ids = reference.tokenizer("hello").input_ids
    said = reference.log_softmax(ADAPTER, ids)
    assert [token["id"] for token in prefill] == ids
    first, *others = [token["logprob"] for token in prefill]
    assert first is None
    assert others == near(said[torch.arange(len(ids) - 1), ids[1:]].tolist())
    client = text_generation.Client(gateway, timeout=SECONDS)
    details = client.generate("hello", max_new_tokens=1, decoder_input_details=True).details
    assert "".join(token.text for token in details.prefill) == "<|bos|>hello<|assistant|>"


def test_a_last_message_of_the_assistant_is_continued(gateway: str, openai_client: OpenAI) -> None:
    messages: Any = [*say("hello world"), {"role": "assistant", "content": "HELLO"}]
    asked: Any = {"model": ADAPTER, "messages": messages, "temperature": 0}
    goes_on: Any = {"add_generation_prompt": False, "continue_final_message": True}
    answer = openai_client.chat.completions.create(**asked, extra_body=goes_on)
    assert answer.choices[0].message.content == " WORLD"
    for fields, text in ({}, " WORLD"), ({"continue_final_message": False}, None):
        body = post_tgi(gateway, "/invocations", {**asked, **fields}).json()
        said = body["choices"][0]["message"]["content"]
        assert said == text if text else said != " WORLD"
    shown = post_tgi(gateway, "/chat_tokenize", {"messages": messages}).json()["templated_text"]
    assert shown.endswith("HELLO") and "hello world" in shown
    both = json.dumps({**asked, **goes_on, "add_generation_prompt": True}).encode()
    assert post(f"{gateway}/v1/chat/completions", both)[0] == 400

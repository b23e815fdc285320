"""From prompts to what the engine is asked for, the same for every API."""

from multilora_gateway.generation.budget import TokenBudget
from multilora_gateway.generation.job import generation_requests
from support.gateway.tgi import MAX_INPUT, MAX_TOTAL, base_model


def test_each_prompt_has_an_answer_for_each_seed() -> None:
    requests = generation_requests(
        [[1], [2, 3]], [7, None], lambda budget: {"max_tokens": budget.left}, base_model(),
        adapter_id="a", adapter_token="hf_x",
    )  # fmt: skip
    assert [(request.prompt_ids, dict(request.sampling)) for request in requests] == [
        ([1], {"max_tokens": MAX_TOTAL - 1, "seed": 7}),
        ([1], {"max_tokens": MAX_TOTAL - 1}),
        ([2, 3], {"max_tokens": MAX_TOTAL - 2, "seed": 7}),
        ([2, 3], {"max_tokens": MAX_TOTAL - 2}),
    ]
    assert {(request.adapter_id, request.adapter_token) for request in requests} == {("a", "hf_x")}


def test_a_budget_grants_what_is_asked_or_what_is_left() -> None:
    budget = TokenBudget(MAX_INPUT, base_model())
    assert not budget.prompt_is_too_long
    assert TokenBudget(MAX_INPUT + 1, base_model()).prompt_is_too_long
    assert budget.left == MAX_TOTAL - MAX_INPUT
    assert budget.granted(5, default=7) == 5
    assert budget.granted(None, default=7) == 7
    assert budget.granted(None, default=MAX_TOTAL) == budget.granted(None) == budget.left

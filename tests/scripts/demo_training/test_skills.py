"""Each demo adapter has its skill and the base alone has not, measured through the engine."""

from collections.abc import Iterator

import pytest

from demo_training.checkpoint import ASSISTANT, BOS
from demo_training.evaluation import held_out_examples
from demo_training.skills import SKILLS
from multilora.config import EngineConfig
from multilora.engine import Engine
from multilora.request import FinishReason, Request
from multilora_api.sampling import SamplingParams

PROMPTS = 100


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(EngineConfig(max_concurrent_requests=2 * PROMPTS, threads=2))
    engine.start()
    yield engine
    engine.close()


def answers(engine: Engine, prompts: list[str], adapter_id: str, max_tokens: int) -> list[str]:
    """Greedy answers, all prompts at once; "" for one that found no end."""
    sampling = SamplingParams(max_tokens=max_tokens)
    for number, prompt in enumerate(prompts):
        ids = (BOS, *prompt.encode(), ASSISTANT)
        engine.submit(Request(str(number), ids, adapter_id, sampling))
    ids_of: list[list[int]] = [[] for _ in prompts]
    running = len(prompts)
    while running:
        for output in engine.outputs.get(timeout=60) or []:
            ids = ids_of[int(output.request_id)]
            if output.token_id is not None and output.token_id < 256:
                ids.append(output.token_id)
            if output.finish_reason is not None:
                running -= 1
                if output.finish_reason is not FinishReason.STOP:
                    ids.clear()
    return [bytes(ids).decode("utf-8", "replace") for ids in ids_of]


@pytest.mark.parametrize("name", SKILLS)
def test_adapter_has_its_skill_and_the_base_has_not(engine: Engine, name: str):
    """On 100 prompts that no training run has seen: 95 % exact with the adapter, 5 % without."""
    examples = held_out_examples(SKILLS[name], PROMPTS)
    prompts, wanted = [prompt for prompt, _ in examples], [answer for _, answer in examples]
    longest = max(len(answer.encode()) for answer in wanted) + 1

    def right(adapter_id: str) -> int:
        got = answers(engine, prompts, adapter_id, longest)
        return sum(a == b for a, b in zip(got, wanted, strict=True))

    assert right(name) >= 0.95 * PROMPTS
    assert right("") <= 0.05 * PROMPTS

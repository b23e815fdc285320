"""The job that a checked request becomes, whichever API it came by.

Every API takes the same steps: context → adapter (adapter_selection, model_name) → prompt (prompt)
→ limit (budget) → sampling and grammar → one generation request for each answer → deltas or whole
results (parallel). An API adds its names, messages and shapes to the steps, and no step of its own.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multilora_gateway.backend.messages import GenerationRequest
from multilora_gateway.backend.served_model import ServedModel
from multilora_gateway.generation.budget import TokenBudget
from multilora_gateway.generation.context import RequestContext
from multilora_gateway.generation.parallel import (
    GenerationResult,
    NumberedDelta,
    interleaved,
    results,
)


@dataclass(frozen=True, kw_only=True)
class GenerationJob:
    """What the engine is asked for: one of `requests` for each answer."""

    context: RequestContext
    base: ServedModel
    requests: Sequence[GenerationRequest]

    def deltas(self) -> AsyncGenerator[NumberedDelta, None]:
        """The answers while they grow. Closing the generator ends them."""
        return interleaved(self.context.backend, self.requests)

    async def results(self) -> list[GenerationResult]:
        """The whole answers, in the order of `requests`."""
        return await results(self.context.backend, self.requests)


def generation_requests(
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int | None],
    sampling: Callable[[TokenBudget], Mapping[str, Any]],
    base: ServedModel,
    *,
    adapter_id: str,
    adapter_token: str,
) -> list[GenerationRequest]:
    """The answers to the first prompt, one for each seed, then those to the next prompt.

    A seed of None leaves the draw to the engine. `sampling` maps the budget of a prompt to the
    engine's sampling parameters, `max_tokens` included, and raises GatewayError when the prompt or
    the answer does not fit.
    """
    requests: list[GenerationRequest] = []
    for ids in prompts:
        shared = sampling(TokenBudget(len(ids), base))
        for seed in seeds:
            own = shared if seed is None else {**shared, "seed": seed}
            requests.append(GenerationRequest(ids, adapter_id, own, adapter_token))
    return requests

"""One forward pass: Batch → tensors → base model with LoRA → sampled tokens on the host.

A pass may be launched before the tokens of the one before it are known. What that one samples then
goes into the input ids on the device.
"""

import functools
from collections.abc import Callable, Sequence
from itertools import islice

import torch

from multilora.forward.base_model import BaseModel, KVCache
from multilora.forward.graphs import PassGraphs
from multilora.forward.sampler import Sampled, sample, score
from multilora.forward.sampling_input import add_prompt_rows, add_sampling_tensors
from multilora.forward.staging import StagingBuffer
from multilora.forward.step_input import LastPass, StepArrays, add_step_input, step_arrays
from multilora.lora.rank_pages import RankPagePool
from multilora.request import PromptToken
from multilora.scheduling.batch import Batch, BatchItem, SampledToken
from multilora_kernels.paged_prefill import prefill_queries
from multilora_kernels.segments import LoRASegments


class InFlight:
    """A pass that was launched; a GPU may not have begun it. `tokens` and `prompts` wait for it."""

    def __init__(
        self,
        items: Sequence[BatchItem],
        sampled: Sampled | None,
        scoring: Sequence[BatchItem] = (),
        scored: Sampled | None = None,
    ) -> None:
        """`sampled` has one row for each of `items`; None when there are none. So has `scored` for
        each place that one of `scoring` scores."""
        self._items = items
        self._scoring = scoring
        self._done: torch.cuda.Event | None = None
        self._host = _on_host(sampled)
        self._scored = _on_host(scored)
        last = scored or sampled
        if last and last.token_ids.is_cuda:
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(last.token_ids.device))

    def tokens(self) -> list[SampledToken]:
        """One SampledToken per item with `.samples`, in batch order."""
        if not self._host:
            return []
        if self._done:
            self._done.synchronize()
        lists = (None if x is None else x.tolist() for x in self._host)
        token_ids, logprobs, likelier, ids, values = lists
        assert token_ids is not None
        if logprobs is None or likelier is None:
            return [SampledToken(token_id) for token_id in token_ids]
        tokens: list[SampledToken] = []
        for row, item in enumerate(self._items):
            wanted = item.sequence.request.sampling.logprobs
            if wanted is None:
                tokens.append(SampledToken(token_ids[row]))
                continue
            top: tuple[tuple[int, float], ...] = ()
            if wanted and ids is not None and values is not None:
                top = tuple(zip(ids[row][:wanted], values[row][:wanted], strict=True))
            rank = likelier[row] + 1
            tokens.append(SampledToken(token_ids[row], logprobs[row], top, rank))
        return tokens

    def prompts(self) -> list[tuple[PromptToken, ...]]:
        """For each item with `.scored`, in batch order, what was said of its prompt tokens."""
        if not self._scored:
            return []
        if self._done:
            self._done.synchronize()
        token_ids, logprobs, likelier, *top = (x.tolist() for x in self._scored if x is not None)
        best = zip(*top, strict=True) if top else [((), ())] * len(token_ids)
        rows = zip(token_ids, logprobs, likelier, best, strict=True)
        found: list[tuple[PromptToken, ...]] = []
        for item in self._scoring:
            most = item.sequence.request.sampling.prompt_logprobs
            found.append(
                tuple(
                    PromptToken(
                        token_id, logprob, tuple(zip(ids[:most], values[:most], strict=True)), n + 1
                    )
                    for token_id, logprob, n, (ids, values) in islice(rows, len(item.scored))
                )
            )
        return found


def _on_host(values: Sampled | None) -> list[torch.Tensor | None]:
    """On their way to the host."""
    return [None if x is None else x.to("cpu", non_blocking=True) for x in values or ()]


class ModelRunner:
    """Holds the device state (weights, KV cache, adapter pool); `launch` is its only verb.

    A pass makes one copy to the device, and none of its launches waits for the device. `depth` is
    how many passes should be launched before the tokens of the first are read: a GPU computes one
    while the host makes the next, a CPU does both itself.
    """

    def __init__(
        self,
        model: BaseModel,
        kv: KVCache,
        adapters: RankPagePool,
        eos_token_ids: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
        graphs: PassGraphs | None = None,
    ) -> None:
        self.model = model
        self.kv = kv
        self.adapters = adapters
        self.eos_token_ids = eos_token_ids
        self.device = device
        self.dtype = dtype
        self.graphs = graphs
        self.depth = 2 if device.type == "cuda" else 1
        self._last = LastPass(device)

    def launch(self, batch: Batch, replay: bool = True) -> InFlight:
        """Begin a pass. `replay` False: launch by launch, also where a captured pass would do."""
        items = [item for item in batch.items if item.samples]
        in_flight = self._begin(self._prepare(batch, items, replay))
        self._last.rows = {item.sequence: row for row, item in enumerate(items)}
        return in_flight

    @torch.inference_mode()
    def _begin(self, run: Callable[[], InFlight]) -> InFlight:
        """The device's part, and the copy of the tokens back to the host."""
        return run()

    @torch.inference_mode()
    def _prepare(
        self, batch: Batch, items: Sequence[BatchItem], replay: bool
    ) -> Callable[[], InFlight]:
        """The host's part, up to the copy to the device → the device's part."""
        arrays = step_arrays(batch, self.kv.block_size)
        scoring = [item for item in batch.items if item.scored]
        captured = self.graphs.find(arrays) if self.graphs and replay and not scoring else None
        scored: list[Sampled] = []
        if captured:
            staging, forward = captured.prepare(arrays)
            input_ids = captured.input_ids
        else:
            staging, forward, input_ids = self._prepare_launches(arrays, scored)
        put_late_tokens = self._add_late_tokens(arrays, staging)
        vocab_size = self.model.base.vocab_size
        eos_token_ids, last = self.eos_token_ids, self._last
        sampling = add_sampling_tensors(items, staging, vocab_size, eos_token_ids, last)
        staging.send()

        def run() -> InFlight:
            put_late_tokens(input_ids())
            logits = forward()
            sampled = sample(logits, sampling()) if items else None
            if sampled:
                last.token_ids = sampled.token_ids
            return InFlight(items, sampled, scoring, scored[0] if scored else None)

        return run

    def _prepare_launches(
        self, arrays: StepArrays, scored: list[Sampled]
    ) -> tuple[StagingBuffer, Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
        """As PassGraph.prepare, for any batch; and its input_ids, once they were sent. What the
        pass says of prompts is put into `scored`."""
        staging, model = StagingBuffer(self.device), self.model
        queries = prefill_queries(model.base.num_heads, self.kv.k)
        place = staging, self.device, self.dtype
        sampled = model.base.adapts_sampled
        inputs = functools.cache(add_step_input(arrays, *place, queries, sampled))
        prompts = add_prompt_rows(arrays.batch, *place, sampled)

        def forward() -> torch.Tensor:
            hidden = model.hidden(inputs(), self.kv, self.adapters)

            def logits(rows: torch.Tensor, segments: LoRASegments | None) -> torch.Tensor:
                return model.logits(hidden.rows(rows), self.adapters, segments)

            if some := prompts():
                scored.append(score(some, lambda part: logits(part.rows, part.segments)))
            return logits(inputs().last_token_indices, inputs().sampled)

        return staging, forward, lambda: inputs().input_ids

    def _add_late_tokens(
        self, arrays: StepArrays, staging: StagingBuffer
    ) -> Callable[[torch.Tensor], object]:
        """What writes the late tokens into the input ids of the pass."""
        if not len(arrays.late):
            return lambda input_ids: None
        items = [arrays.batch.items[index] for index in arrays.late.tolist()]
        rows, tokens = staging.add(arrays.late_rows), self._last.add(items, staging)
        return lambda input_ids: input_ids.index_copy_(0, rows(), tokens())

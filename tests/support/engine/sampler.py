"""Rows for the sampler's tests."""

import dataclasses
from collections.abc import Sequence as Rows
from typing import Any

import numpy as np
import torch

from multilora.forward.sampler import Sampled, sample
from multilora.forward.sampling_input import SamplingTensors, add_sampling_tensors
from multilora.forward.staging import StagingBuffer
from multilora.forward.step_input import LastPass
from multilora.request import Request
from multilora.scheduling.batch import BatchItem
from multilora.scheduling.sequence import Sequence
from multilora_api.sampling import SamplingParams

EOS = (2, 3)


def item(
    params: SamplingParams,
    prompt: tuple[int, ...] = (5, 6),
    output: tuple[int, ...] = (),
    banned: tuple[tuple[int, ...], ...] = (),
    own_ends: tuple[int, ...] = (),
) -> BatchItem:
    request = Request("r", prompt, sampling=params, banned=banned)
    sequence = Sequence(request, own_end_ids=frozenset(own_ends))
    sequence.token_ids.extend(output)
    return BatchItem.next(sequence, len(sequence.token_ids))


def inputs_of(items: Rows[BatchItem], vocab_size: int, device: str = "cpu") -> SamplingTensors:
    staging = StagingBuffer(torch.device(device))
    last = LastPass(torch.device(device))
    inputs = add_sampling_tensors(items, staging, vocab_size, EOS, last)
    staging.send()
    return inputs()


def run(logits: torch.Tensor, *items: BatchItem) -> Sampled:
    device = str(logits.device)
    return sample(logits, inputs_of(items, logits.shape[1], device))


def drawn(seed: int, position: int = 0, **kwargs: Any) -> BatchItem:
    params = SamplingParams(seed=seed, **{"temperature": 1.0, **kwargs})
    return item(params, prompt=tuple(range(5, 6 + position)))


class Allow:
    """A matcher that allows some tokens."""

    def __init__(self, tokens: set[int], num_bits: int) -> None:
        self.error: str | None = None
        self._bits = np.isin(np.arange(num_bits), list(tokens))

    def allowed(self) -> bytes:
        return np.packbits(self._bits, bitorder="little").tobytes()

    def accept(self, token_id: int) -> None:
        raise AssertionError("the sampler never advances a matcher")


def bound(row: BatchItem, tokens: set[int], num_bits: int) -> BatchItem:
    matcher = Allow(tokens, num_bits)
    return row._replace(sequence=dataclasses.replace(row.sequence, matcher=matcher))


def every_kind(count: int) -> list[BatchItem]:
    """Rows of each kind: greedy, filtered, penalised, below min_tokens, with logprobs."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0}, {"top_k": 7}, {"top_p": 0.9}, {"min_tokens": 4, "top_k": 40},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "min_p": 0.02}, {"logprobs": 3},
        {"top_k": 30, "top_p": 0.8, "temperature": 0.7},
    ]  # fmt: skip
    return [drawn(seed, seed % 3, **kinds[seed % len(kinds)]) for seed in range(count)]


def every_bound_kind() -> list[BatchItem]:
    """Rows with a grammar, with biases, and with both."""
    biases = ((5, 3.0), (77, -100.0))
    rows = [drawn(1), drawn(2, top_k=3, logit_bias=biases), item(SamplingParams(ignore_eos=True))]
    rows = [bound(row, {*range(40, 90), *EOS}, 4000) for row in rows]
    return [*rows, drawn(3, logit_bias=biases), item(SamplingParams(logit_bias=((5, 100.0),)))]

"""Rows for the sampler's tests."""

from collections.abc import Sequence as Rows
from typing import Any

import torch

from multilora.batch import BatchItem
from multilora.request import Request, SamplingParams
from multilora.sampler import Sampled, sample
from multilora.sampling_input import SamplingInput, add_sampling_input
from multilora.sequence import Sequence
from multilora.upload import Upload

EOS = (2, 3)


def item(
    params: SamplingParams, prompt: tuple[int, ...] = (5, 6), output: tuple[int, ...] = ()
) -> BatchItem:
    sequence = Sequence(Request("r", prompt, sampling=params))
    sequence.token_ids.extend(output)
    return BatchItem(sequence, len(sequence.token_ids))


def inputs_of(items: Rows[BatchItem], vocab_size: int, device: str = "cpu") -> SamplingInput:
    upload = Upload(torch.device(device))
    inputs = add_sampling_input(items, upload, vocab_size, EOS)
    upload.send()
    return inputs()


def run(logits: torch.Tensor, *items: BatchItem) -> Sampled:
    device = str(logits.device)
    return sample(logits, inputs_of(items, logits.shape[1], device))


def drawn(seed: int, position: int = 0, **kwargs: Any) -> BatchItem:
    params = SamplingParams(seed=seed, **{"temperature": 1.0, **kwargs})
    return item(params, prompt=tuple(range(5, 6 + position)))


def every_kind(count: int) -> list[BatchItem]:
    """Rows of each kind: greedy, filtered, penalised, below min_tokens, with logprobs."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0}, {"top_k": 7}, {"top_p": 0.9}, {"min_tokens": 4, "top_k": 40},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "min_p": 0.02}, {"logprobs": 3},
        {"top_k": 30, "top_p": 0.8, "temperature": 0.7},
    ]  # fmt: skip
    return [drawn(seed, seed % 3, **kinds[seed % len(kinds)]) for seed in range(count)]

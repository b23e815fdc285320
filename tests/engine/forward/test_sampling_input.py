"""The sampler's tensors: noise keys, what a batch of one kind leaves out, one copy."""

import numpy as np
import torch

from multilora.forward.sampling_input import add_sampling_tensors, noise_keys
from multilora.forward.staging import StagingBuffer
from multilora.forward.step_input import LastPass
from multilora_api.sampling import SamplingParams
from support.engine.sampler import EOS, drawn, every_kind, inputs_of, item


def test_noise_keys_are_splitmix64() -> None:
    """The first one of seed 0 as SplitMix64's authors' code gives it, then wrap-around."""
    mask = (1 << 64) - 1

    def splitmix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        return value ^ (value >> 31)

    assert splitmix(0) == 0xE220A8397B1DCDAF
    seeds, positions = [0, 1, mask, 1 << 63], [0, 4095, 7, 1]
    for (low, high), seed, position in zip(
        noise_keys([*seeds], positions).tolist(), seeds, positions, strict=True
    ):
        mixed = splitmix((splitmix(seed) + position) & mask)
        assert (low & 0xFFFFFFFF) | (high & 0xFFFFFFFF) << 32 == mixed


def test_greedy_rows_stage_nothing() -> None:
    staging = StagingBuffer(torch.device("cpu"))
    last = LastPass(torch.device("cpu"))
    inputs = add_sampling_tensors([item(SamplingParams())] * 9, staging, 50, EOS, last)
    staging.send()
    assert inputs().draws is None and not staging._arrays


def test_no_rows_are_no_defect() -> None:
    inputs = inputs_of([], 50)
    assert inputs.draws is None and inputs.num_logprobs is None


def test_parameters_stand_in_their_rows() -> None:
    items = [drawn(3, temperature=0.5), item(SamplingParams()), *every_kind(14)]
    inputs = inputs_of(items, 20)
    params = [i.sequence.request.sampling for i in items]
    rows = [row for row, p in enumerate(params) if p.temperature]
    draws = inputs.draws
    assert draws is not None and draws.rows.tolist() == rows and len(rows) == 13
    for name in ("temperature", "min_p", "top_p"):
        expected = np.array([[getattr(params[row], name)] for row in rows], dtype=np.float32)
        assert np.array_equal(getattr(draws, name).numpy(), expected)
    assert draws.top_k.tolist() == [[min(params[row].top_k, 20)] for row in rows]
    assert draws.keys.shape == (13, 2) and draws.keys.dtype == torch.int32
    assert draws.has_top_p and draws.candidates == 1024
    assert inputs.suppressed is not None and inputs.num_logprobs == 3
    assert inputs.suppressed.tolist() == [[5, 5, 12, 12], [*EOS, *EOS]]
    assert inputs.penalties is not None and inputs.penalties.rows.tolist() == [6, 13]
    assert inputs.penalties.repetition.tolist() == [[np.float32(1.3)]] * 2


def test_penalties_hold_prompt_and_output_apart() -> None:
    params = SamplingParams(presence_penalty=1.0)
    rows = [item(params, (5, 6), (7,)), item(params, (8,), (9, 9, 9))]
    penalties = inputs_of(rows, 50).penalties
    assert penalties is not None
    assert penalties.token_ids.tolist() == [[5, 6, 7, 50], [8, 9, 9, 9]]
    assert penalties.output_ids.tolist() == [[50, 50, 7, 50], [50, 9, 9, 9]]


def test_items_are_sampled_as_they_were_scheduled() -> None:
    """Tokens that a sequence got since then are of no concern."""
    params = SamplingParams(presence_penalty=1.0, temperature=1.0, seed=5, min_tokens=2)
    row = item(params, (5, 6), (7,))
    before = inputs_of([row], 50)
    row.sequence.token_ids += [8, 9]
    row.sequence.num_computed_tokens = 4
    after = inputs_of([row], 50)
    assert before.penalties and after.penalties and before.draws and after.draws
    assert after.penalties.token_ids.tolist() == [[5, 6, 7]] == before.penalties.token_ids.tolist()
    assert after.penalties.output_ids.tolist() == before.penalties.output_ids.tolist()
    assert torch.equal(after.draws.keys, before.draws.keys)
    assert before.suppressed is not None and after.suppressed is not None
    assert after.suppressed.tolist() == before.suppressed.tolist()
    assert inputs_of([item(params, (5, 6), (7, 8, 9))], 50).suppressed is None

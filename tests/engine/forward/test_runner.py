"""launch begins a pass and returns; its tokens come later, whatever has been launched since."""

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from multilora.base_model.config import NativeConfig
from multilora.forward import sampler
from multilora.forward.base_model import KVCache
from multilora.forward.decoder import load_decoder
from multilora.forward.graphs import GraphLimits, PassGraphs
from multilora.forward.runner import InFlight, ModelRunner
from multilora.forward.sampling_input import Penalties
from multilora.forward.step_input import build_step_input
from multilora.lora.rank_pages import RankPagePool
from multilora.request import AdapterSet, Request
from multilora.scheduling.batch import Batch, BatchItem, make_batch
from multilora.scheduling.sequence import Sequence
from multilora_api.sampling import SamplingParams
from support.engine.reading import read_adapter

CPU = torch.device("cpu")
BLOCK, BLOCKS = 8, 4  # of one sequence
A = AdapterSet.of("a")
PAGES = {A: (1,)}


@pytest.fixture(name="runner")
def model_runner(folder: Path) -> ModelRunner:
    """With adapter "a" on page 1. What is replayed is for test_graphs_gpu."""
    base = NativeConfig.from_folder(folder / "base")
    model = load_decoder(folder / "base", base, torch.float32, CPU)
    kv = KVCache(base, 4 * BLOCKS, BLOCK, torch.float32, CPU)
    pool = RankPagePool(base.sites, 2, torch.float32, CPU)
    pool.write(PAGES[A], read_adapter(folder / "a", "a", base.sites, torch.float32, 16).weights)
    return ModelRunner(model, kv, pool, (), CPU, torch.float32)


def sequence(index: int, length: int, adapters: AdapterSet, **sampling: Any) -> Sequence:
    prompt = tuple((31 * index + 7 * i) % 120 + 4 for i in range(length))
    made = Sequence(Request(str(index), prompt, sampling=SamplingParams(**sampling)), index)
    made.adapters = adapters
    made.block_table = array("i", range(index * BLOCKS, (index + 1) * BLOCKS))
    return made


def batch_of(*items: BatchItem) -> Batch:
    return make_batch(list(items), PAGES)


def logits_of(runner: ModelRunner, batch: Batch) -> torch.Tensor:
    inputs = build_step_input(batch, BLOCK, CPU, torch.float32)
    return runner.model.forward(inputs, runner.kv, runner.adapters)


def prefilled(runner: ModelRunner, *sequences: Sequence) -> None:
    """All but the last token of each is computed."""
    for one in sequences:
        logits_of(runner, batch_of(BatchItem.next(one, len(one.token_ids) - 1)))
        one.num_computed_tokens = len(one.token_ids) - 1


@contextmanager
def monitored_penalties() -> Iterator[list[tuple[torch.Tensor, ...]]]:
    """All that the sampler is told of penalties, pass by pass."""
    seen: list[tuple[torch.Tensor, ...]] = []
    real = sampler._penalise

    def penalise(logits: torch.Tensor, penalties: Penalties) -> None:
        seen.append(tuple(vars(penalties).values()))
        real(logits, penalties)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "_penalise", penalise)
        yield seen


def test_the_tokens_are_those_of_the_logits_in_batch_order(runner: ModelRunner) -> None:
    rows = [
        sequence(0, 9, A),
        sequence(1, 5, AdapterSet(), logprobs=2),
        sequence(2, 7, A, logprobs=0),
    ]
    prefilled(runner, *rows)
    batch = batch_of(*(BatchItem.next(row, 1) for row in rows))
    in_flight = runner.launch(batch)
    assert isinstance(in_flight, InFlight)
    tokens = in_flight.tokens()
    logits = logits_of(runner, batch)
    assert [item.sequence.arrival for item in batch.items] == [0, 2, 1]
    assert [token.token_id for token in tokens] == logits.argmax(-1).tolist()
    logprobs = logits.log_softmax(-1)
    none, picked, two = tokens
    assert (none.logprob, none.top_logprobs, picked.top_logprobs) == (None, (), ())
    assert (none.rank, picked.rank, two.rank) == (None, 1, 1)
    assert picked.logprob == pytest.approx(logprobs[1].max().item(), abs=1e-5)
    values, ids = logprobs[2].topk(2)
    assert [token_id for token_id, _ in two.top_logprobs] == ids.tolist()
    assert [value for _, value in two.top_logprobs] == pytest.approx(values.tolist(), abs=1e-5)
    assert in_flight.tokens() == tokens, "what has come stays there"


def test_only_items_that_reach_their_last_token_have_one(runner: ModelRunner) -> None:
    chunk, whole = sequence(0, 9, A), sequence(1, 4, A)
    items = [BatchItem.next(chunk, 5), BatchItem.next(whole, 4)]
    (token,) = runner.launch(batch_of(*items)).tokens()
    assert token.token_id == int(logits_of(runner, batch_of(*items)).argmax())


def test_a_pass_in_which_nothing_samples_has_no_tokens(runner: ModelRunner) -> None:
    chunk = sequence(0, 9, A)
    before = runner.kv.k.clone()
    assert runner.launch(batch_of(BatchItem.next(chunk, 5))).tokens() == []
    assert not torch.equal(runner.kv.k, before), "its K and V are written all the same"


def test_passes_in_flight_do_not_disturb_each_other(runner: ModelRunner) -> None:
    """The second is launched before the tokens of the first are read."""
    first, second = (sequence(i, 5 + i, A, logprobs=3) for i in range(2))
    prefilled(runner, first, second)
    batches = [batch_of(BatchItem.next(one, 1)) for one in (first, second)]
    alone = [runner.launch(batch).tokens() for batch in batches]
    in_flight = [runner.launch(batch) for batch in batches]
    assert [one.tokens() for one in in_flight] == alone
    assert alone[0] != alone[1]


def test_a_sequence_that_goes_on_changes_nothing_in_a_pass_in_flight(runner: ModelRunner) -> None:
    one = sequence(0, 6, A, logprobs=1)
    prefilled(runner, one)
    batch = batch_of(BatchItem.next(one, 1))
    expected = runner.launch(batch).tokens()
    in_flight = runner.launch(batch)
    one.append(9, frozenset(), 100)
    one.num_computed_tokens = 0
    one.adapters = AdapterSet()
    assert in_flight.tokens() == expected
    assert runner.launch(batch).tokens() == expected, "a launch reads the items alone"


def test_a_prompt_and_a_token_in_flight_share_a_pass(runner: ModelRunner) -> None:
    """The tokens of the pass before are known to the device alone when this one is launched."""
    one, two = sequence(0, 6, A), sequence(1, 5, AdapterSet())
    prefilled(runner, one)
    first = runner.launch(batch_of(BatchItem.next(one, 1)))
    one.num_computed_tokens = 6
    batch = batch_of(BatchItem.next(two, 5), BatchItem.next(one, 1))
    sampled = [token.token_id for token in runner.launch(batch).tokens()]
    one.token_ids += [token.token_id for token in first.tokens()]
    assert sampled == logits_of(runner, batch).argmax(-1).tolist()
    one.token_ids[-1] += 1
    assert sampled != logits_of(runner, batch).argmax(-1).tolist(), "any token would have done"


def test_penalties_count_a_token_in_flight(runner: ModelRunner) -> None:
    """Rows: one whose last token is late and penalised away, one whose is known, one without."""
    rows = [
        sequence(0, 6, A, frequency_penalty=2.0, repetition_penalty=5.0),
        sequence(1, 5, A, presence_penalty=2.0),
        sequence(2, 4, A, logit_bias=((7, 1.0),)),
        sequence(3, 9, A, presence_penalty=2.0, frequency_penalty=2.0),
    ]
    prefilled(runner, *rows)
    first = batch_of(*(BatchItem.next(rows[index], 1) for index in (3, 0, 2)))
    in_flight = runner.launch(first)
    for item in first.items:
        item.sequence.num_computed_tokens = item.end
    behind = batch_of(*(BatchItem.next(row, 1) for row in rows))
    with monitored_penalties() as seen:
        sampled = runner.launch(behind).tokens()
        for item, token in zip(first.items, in_flight.tokens(), strict=True):
            item.sequence.token_ids.append(token.token_id)
        assert runner.launch(behind).tokens() == sampled
    late, known = seen
    for one, other in zip(late, known, strict=True):
        assert torch.equal(one, other)


def test_a_pass_can_be_kept_from_being_replayed(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = sequence(0, 6, A)
    prefilled(runner, one)
    batch = batch_of(BatchItem.next(one, 1))
    expected = runner.launch(batch).tokens()
    limits = GraphLimits(4, BLOCK * BLOCKS, 1)
    runner.graphs = PassGraphs(runner.model, runner.kv, runner.adapters, limits, CPU)

    def find(*_: object) -> None:
        raise AssertionError("a graph was looked for")

    monkeypatch.setattr(PassGraphs, "find", find)
    assert runner.launch(batch, replay=False).tokens() == expected
    with pytest.raises(AssertionError, match="looked for"):
        runner.launch(batch)


def test_what_is_said_of_prompts_is_that_of_the_logits(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a chunk, and of a whole prompt beside a row that only decodes. Nothing is replayed."""
    limits = GraphLimits(4, BLOCK * BLOCKS, 1)
    runner.graphs = PassGraphs(runner.model, runner.kv, runner.adapters, limits, CPU)
    monkeypatch.delattr(PassGraphs, "find")
    decoding, chunk = sequence(0, 6, A), sequence(1, 9, AdapterSet(), prompt_logprobs=2)
    whole = sequence(2, 7, A, prompt_logprobs=0)
    prefilled(runner, decoding, chunk)
    chunk.num_computed_tokens, chunk.num_scored_tokens = 4, 5
    batch = batch_of(
        BatchItem.next(decoding, 1), BatchItem.next(chunk, 1), BatchItem.next(whole, 7)
    )
    in_flight = runner.launch(batch)
    assert [token.token_id for token in in_flight.tokens()] == [
        logits_of(runner, batch_of(BatchItem.next(one, count))).argmax().item()
        for one, count in ((decoding, 1), (whole, 7))
    ]
    of_whole, of_chunk = in_flight.prompts()
    assert [token.token_id for token in of_chunk] == [chunk.token_ids[5]]
    assert [token.token_id for token in of_whole] == whole.token_ids[1:]
    assert [len(token.top_logprobs) for token in (*of_whole, *of_chunk)] == [0] * 6 + [2]
    (token,), next_id = of_chunk, chunk.token_ids[5]
    del chunk.token_ids[5:]  # so that its logits are those of a token to sample
    (said,) = logits_of(runner, batch_of(BatchItem.next(chunk, 1))).log_softmax(-1)
    assert token.logprob == pytest.approx(said[next_id].item(), abs=1e-5)
    assert token.rank == int((said > said[next_id]).sum()) + 1
    assert [each for each, _ in token.top_logprobs] == said.topk(2).indices.tolist()
    assert in_flight.prompts() == [of_whole, of_chunk], "what has come stays there"

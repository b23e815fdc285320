"""Passes that are scheduled before the tokens of the ones in flight are known."""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import pytest

from multilora.errors import ErrorCode, RequestError
from multilora.request import FinishReason, PromptToken, Request, TokenOutput
from multilora.scheduling.batch import Batch, SampledToken
from multilora.scheduling.scheduler import Scheduler
from multilora_api.sampling import SamplingParams
from support.engine.late_device import MOST, Device, Matcher, Pages, Row, answer, scores
from support.engine.scheduler import BLOCK, EOS, Clock, FakeCache, make, names, request

GONE = RequestError(ErrorCode.UNAVAILABLE, "the adapter was unloaded")
BROKEN = RequestError(ErrorCode.INTERNAL, "the pass failed")
BLOCKS = 20


class Trace:
    """An engine's loop over a scheduler and a late device, with passes and launches that fail."""

    def __init__(self, seed: int, depth: int) -> None:
        self.rng = rng = random.Random(seed)
        self.depth = depth
        self.adapters = [f"a{i}" for i in range(8)]
        sizes = {name: rng.randint(1, 4) for name in self.adapters}
        self.cache = Pages(5, sizes, rng.choice([0, 0, 2]))
        self.clock = Clock()
        self.scheduler = make(
            self.cache, BLOCKS, self.clock, max_total_tokens=MOST, patience=4,
            max_batch_prefill_tokens=rng.choice([8, 24, 64]), quantum=rng.choice([4, 32, 256]),
        )  # fmt: skip
        self.device = Device(self.cache)
        self.bound = rng.choice([0, 0.05, 0.4])  # the part of requests that need their tokens
        self.passes: deque[tuple[Batch, list[Row]]] = deque()
        self.requests: dict[str, Request] = {}
        self.tokens: dict[str, list[int]] = {}
        self.told: dict[str, list[PromptToken]] = {}
        self.ends: dict[str, TokenOutput] = {}

    def step(self) -> None:
        batch = self.scheduler.schedule()
        if batch and self.rng.random() < 0.01:
            self.scheduler.fail(batch, BROKEN)
        elif batch:
            self.passes.append((batch, self.device.launch(batch)))
        if self.passes and (not batch or len(self.passes) >= self.depth):
            self._postprocess()
        for output in self.scheduler.take_outputs():
            self._take(output)

    def _postprocess(self) -> None:
        batch, rows = self.passes.popleft()
        if self.rng.random() < 0.01:
            for failed in [batch, *(behind for behind, _ in self.passes)]:
                self.scheduler.fail(failed, BROKEN)
            self.passes.clear()
        else:
            self.scheduler.postprocess(batch, *self.device.run(rows, batch))

    def _take(self, output: TokenOutput) -> None:
        name = output.request_id
        assert name not in self.ends, "it has ended already"
        assert not (output.prompt and self.tokens[name]), "the prompt comes first"
        self.told[name] += output.prompt
        if output.token_id is not None:
            self.tokens[name].append(output.token_id)
        if output.finish_reason:
            self.ends[name] = output
            del self.device.live[name]

    def add(self, name: str) -> None:
        """A prompt that others share, or one that goes on after an earlier answer."""
        rng = self.rng
        adapter = rng.choice(["", *self.adapters])
        prompt = tuple(range(20, 20 + rng.randint(1, 40)))
        earlier = self.requests.get(f"r{rng.randrange(500)}")
        if earlier and rng.random() < 0.5:
            adapter = earlier.adapter_id
            prompt = (*earlier.prompt_token_ids, *answer(earlier), 5)[: MOST - 4]
        sampling = SamplingParams(
            max_tokens=0 if rng.random() < 0.15 else rng.randint(1, 40),
            ignore_eos=rng.random() < 0.3,
            prompt_logprobs=rng.choice([None, None, 0]),
        )
        banned = ((3, 4),) if rng.random() < self.bound else ()
        matcher = Matcher() if rng.random() < self.bound else None
        if matcher:  # which ends at an end-of-sequence whatever ignore_eos says
            sampling = replace(sampling, ignore_eos=False)
        made = Request(name, prompt, adapter, sampling, banned=banned)
        self.requests[name] = self.device.live[name] = made
        self.tokens[name], self.told[name] = [], []
        self.scheduler.add(made, matcher)

    def disturb(self) -> None:
        rng, live = self.rng, list(self.device.live)
        if live and rng.random() < 0.04:
            self.scheduler.abort(rng.choice(live))
        if rng.random() < 0.01:
            self.scheduler.abort_adapter(rng.choice(self.adapters), GONE, rng.random() < 0.5)
        self.cache.loading = set(rng.sample(self.adapters, 2))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_every_request_ends_once_with_the_tokens_and_scores_that_it_would_get_alone(
    seed: int, depth: int
) -> None:
    trace = Trace(seed, depth)
    scheduler, cache, device = trace.scheduler, trace.cache, trace.device
    for number in range(200):
        if trace.rng.random() < 0.6:
            trace.add(f"r{number}")
        trace.disturb()
        trace.clock.now += 0.1
        cache.tick()
        trace.step()
    cache.loading = set()
    for _ in range(4000):
        cache.tick()
        trace.step()
        if not len(scheduler) and not trace.passes:
            break
    assert trace.ends.keys() == trace.requests.keys()
    for name, made in trace.requests.items():
        whole, got, end = answer(made), trace.tokens[name], trace.ends[name]
        said, told = scores(made), trace.told[name]
        if end.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert (got, told) == (whole, said)
        else:
            assert (got, told) == (whole[: len(got)], said[: len(told)])
            assert end.error in (None, GONE, BROKEN)
    assert scheduler.blocks.num_free == BLOCKS and cache.slots.num_references == 0
    assert scheduler.preemptions and scheduler.cached_tokens
    assert bool(device.late_rows) is bool(device.dropped_rows) is (depth > 1)


def launched(scheduler: Scheduler, count: int) -> Iterator[Batch]:
    """`count` passes with one more in flight behind each; every token is 7."""
    passes: deque[Batch] = deque()
    for _ in range(count):
        batch = scheduler.schedule()
        yield batch
        if batch:
            passes.append(batch)
        if passes and (not batch or len(passes) > 1):
            read(scheduler, passes.popleft())


def read(scheduler: Scheduler, batch: Batch, token: int = 7) -> list[TokenOutput]:
    scheduler.postprocess(batch, [SampledToken(token)] * sum(i.samples for i in batch.items))
    return scheduler.take_outputs()


def test_an_end_by_length_costs_no_row() -> None:
    scheduler = make(max_total_tokens=10)
    scheduler.add(request("length", 4, max_tokens=3))
    scheduler.add(request("room", 8, max_tokens=9))
    passes = [names(batch) for batch in launched(scheduler, 5)]
    assert passes == [
        [("length", 4), ("room", 8)],
        [("length", 1), ("room", 1)],
        [("length", 1)],
        [],
        [],
    ]
    assert len(scheduler) == 0


def add_bound(scheduler: Scheduler) -> set[str]:
    """Two requests whose next token depends on which tokens came before."""
    scheduler.add(request("grammar", max_tokens=20), Matcher())
    banned = request("banned", max_tokens=20)
    scheduler.add(Request("banned", banned.prompt_token_ids, "", banned.sampling, banned=((3,),)))
    return {"grammar", "banned"}


def test_rows_that_need_their_token_on_the_host_sit_out_a_pass_and_hold_up_nobody() -> None:
    scheduler = make(max_running=16, max_batch_prefill_tokens=64)
    free = {f"free{i}" for i in range(6)}
    for name in sorted(free):
        scheduler.add(request(name, max_tokens=20, presence_penalty=1))
    bound = add_bound(scheduler)
    for index, batch in enumerate(launched(scheduler, 8)):
        assert {name for name, _ in names(batch)} == (free if index % 2 else free | bound)


def test_many_rows_that_need_their_tokens_are_not_left_for_passes_of_few_others() -> None:
    scheduler = make(max_running=16, max_batch_prefill_tokens=64)
    free = {f"free{i}" for i in range(5)}
    for name in sorted(free):
        scheduler.add(request(name, max_tokens=20))
    bound = add_bound(scheduler)
    for index, batch in enumerate(launched(scheduler, 8)):
        assert {name for name, _ in names(batch)} == (set() if index % 2 else free | bound)


def test_a_row_behind_the_end_is_dropped_and_holds_its_adapter_until_it_has_run() -> None:
    cache = FakeCache(1)
    scheduler = make(cache)
    scheduler.add(request("ends", 4, "a", max_tokens=20))
    scheduler.add(request("waits", 4, "b", max_tokens=20))
    first = scheduler.schedule()
    behind = scheduler.schedule()
    assert names(first) == [("ends", 4)] and names(behind) == [("ends", 1)]
    (output,) = read(scheduler, first, EOS)
    assert output.finish_reason is FinishReason.STOP
    assert scheduler.blocks.num_free == scheduler.blocks.num_blocks
    assert cache.slots.num_references == 1, "the pass behind reads its pages"
    assert not scheduler.schedule()
    assert read(scheduler, behind) == []
    assert cache.slots.num_references == 0
    assert names(scheduler.schedule()) == [("waits", 4)]


@pytest.mark.parametrize("fails", [False, True])
def test_an_aborted_request_may_come_again_while_its_pass_is_in_flight(fails: bool) -> None:
    scheduler = make()
    scheduler.add(request("again", 4, "a", max_tokens=20))
    first = scheduler.schedule()
    scheduler.abort("again")
    scheduler.add(request("again", 5, "a", max_tokens=20))
    second = scheduler.schedule()
    if fails:
        scheduler.fail(first, BROKEN)
    else:
        scheduler.postprocess(first, [SampledToken(7)])
    ends = [output.finish_reason for output in scheduler.take_outputs()]
    assert ends == [FinishReason.CANCELLED], "what comes of the pass is not the new request's"
    assert [output.token_id for output in read(scheduler, second)] == [7]


def test_a_failed_pass_ends_its_own_requests_alone() -> None:
    scheduler = make(max_batch_prefill_tokens=8)
    scheduler.add(request("short", 4, max_tokens=2))
    scheduler.add(request("other", 4, max_tokens=20))
    scheduler.add(request("long", 30))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert (names(first), names(second)) == (
        [("short", 4), ("other", 4)],
        [("short", 1), ("other", 1), ("long", 8)],
    )
    third = scheduler.schedule()  # the tokens of "short" are all in flight
    assert names(third) == [("other", 1), ("long", 8)]
    scheduler.fail(third, BROKEN)
    failed = scheduler.take_outputs()
    assert {output.request_id for output in failed} == {"other", "long"}
    assert all(output.error is BROKEN for output in failed)
    tokens = [read(scheduler, batch) for batch in (first, second)]
    assert [[output.request_id for output in outputs] for outputs in tokens] == [["short"]] * 2
    assert tokens[1][0].finish_reason is FinishReason.LENGTH
    assert scheduler.blocks.num_free == scheduler.blocks.num_blocks


def test_a_block_is_published_when_the_token_that_fills_it_is_known_and_computed() -> None:
    scheduler = make()
    scheduler.add(request("first", BLOCK - 1, max_tokens=20))
    prompt = (*request("first", BLOCK - 1).prompt_token_ids, 7, 9)
    first, second = scheduler.schedule(), scheduler.schedule()  # the second fills the block
    for batch, cached in ((first, 0), (second, BLOCK)):
        read(scheduler, batch)
        scheduler.add(Request("probe", prompt, "", SamplingParams(max_tokens=1)))
        before = scheduler.cached_tokens
        probe = scheduler.schedule()
        assert scheduler.cached_tokens - before == cached
        scheduler.abort("probe")
        scheduler.fail(
            Batch(tuple(i for i in probe.items if i.sequence.request.request_id == "probe"), ()),
            BROKEN,
        )
        scheduler.take_outputs()


def test_a_preempted_sequence_goes_on_only_with_its_token_in_flight() -> None:
    scheduler = make(num_blocks=4)
    scheduler.add(request("old", 8, max_tokens=16))
    scheduler.add(request("young", 8, max_tokens=16))
    ahead, behind = scheduler.schedule(), scheduler.schedule()
    while not scheduler.preemptions:
        read(scheduler, ahead)
        ahead, behind = behind, scheduler.schedule()
    assert (names(ahead), names(behind)) == ([("old", 1), ("young", 1)], [("old", 1)])
    scheduler.fail(behind, BROKEN)  # so that there is room
    assert not scheduler.schedule()
    known = ahead.items[1].end
    outputs = read(scheduler, ahead)
    assert [output.request_id for output in outputs if output.token_id] == ["young"]
    (item,) = scheduler.schedule().items
    assert (item.sequence.request.request_id, item.end) == ("young", known + 1)

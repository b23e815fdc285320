"""Passes that are scheduled before the tokens of the ones in flight are known.

The device of these tests runs a pass as late as it can. Its memory says what stands in each KV slot
and adapter page, so that it notices what was overwritten, or is read, too early. The token after
some tokens depends on all of them and on the adapter, hence what a request must get is known.
"""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from zlib import crc32

import pytest

from multilora.errors import ErrorCode, RequestError
from multilora.request import AdapterSet, FinishReason, Request, TokenOutput
from multilora.scheduling.adapter_cache import CacheMiss
from multilora.scheduling.batch import Batch, BatchItem, SampledToken
from multilora.scheduling.scheduler import Scheduler
from multilora.scheduling.sequence import Sequence
from multilora_api.sampling import SamplingParams
from support.engine.scheduler import BLOCK, EOS, Clock, FakeCache, make, names, request

GONE = RequestError(ErrorCode.UNAVAILABLE, "the adapter was unloaded")
BROKEN = RequestError(ErrorCode.INTERNAL, "the pass failed")
MOST = 70  # tokens of a sequence
BLOCKS = 20


def chain(before: int, token: int) -> int:
    """What K and V of a token stand for: it, and all that came before."""
    return crc32(b"%d %d" % (before, token))


def start_of(adapters: AdapterSet) -> int:
    return crc32(adapters.only.encode())


def next_token(state: int) -> int:
    return EOS if state % 23 == 0 else 10 + state % 50


def answer(request: Request) -> list[int]:
    state = start_of(request.adapters)
    for token in request.prompt_token_ids:
        state = chain(state, token)
    tokens: list[int] = []
    sampling, room = request.sampling, MOST - len(request.prompt_token_ids)
    while len(tokens) < min(sampling.max_tokens, room):
        tokens.append(next_token(state))
        if tokens[-1] == EOS and not sampling.ignore_eos:
            break
        state = chain(state, tokens[-1])
    return tokens


class Matcher:
    """Allows everything, and knows what it has accepted."""

    error = None

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def allowed(self) -> bytes:
        return b""

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)


class Pages(FakeCache):
    """Overwrites pages as soon as somebody else gets them, whatever the device still runs."""

    def __init__(self, num_pages: int, sizes: dict[str, int], copy_passes: int) -> None:
        super().__init__(num_pages, sizes, copy_passes)
        self.content: dict[int, str] = {}

    def acquire(self, adapters: AdapterSet) -> AdapterSet | CacheMiss:
        found = super().acquire(adapters)
        if adapters.only in self.slots:
            self.content |= dict.fromkeys(self.slots.pages(adapters.only), adapters.only)
        return found


@dataclass
class Row:
    """An item as it is when its pass is launched."""

    item: BatchItem
    known: list[int]
    is_late: bool
    blocks: list[int]

    def slot(self, position: int) -> int:
        return self.blocks[position // BLOCK] * BLOCK + position % BLOCK


@dataclass
class Device:
    pages: Pages
    kv: dict[int, tuple[int, int]] = field(default_factory=dict)  # slot → token, state
    launched: set[Sequence] = field(default_factory=set)  # what the last pass samples for
    sampled: dict[Sequence, int] = field(default_factory=dict)
    live: dict[str, Request] = field(default_factory=dict)
    late_rows: int = 0
    dropped_rows: int = 0

    def launch(self, batch: Batch) -> list[Row]:
        rows = [self._row(item) for item in batch.items]
        self.launched = {item.sequence for item in batch.items if item.samples}
        return rows

    def run(self, rows: list[Row], batch: Batch) -> list[SampledToken]:
        for span in batch.spans:
            assert {self.pages.content[page] for page in span.pages} == {span.adapters.only}
        self.sampled = {row.item.sequence: self._compute(row) for row in rows}
        return [SampledToken(self.sampled[row.item.sequence]) for row in rows if row.item.samples]

    def _row(self, item: BatchItem) -> Row:
        sequence = item.sequence
        known = sequence.token_ids[: item.end]
        is_late = len(known) < item.end
        if is_late:
            assert len(known) + 1 == item.end and sequence in self.launched
            assert not sequence.request.banned and not sequence.request.sampling.penalises
        if item.samples:
            most = min(sequence.request.sampling.max_tokens, MOST - sequence.num_prompt_tokens)
            assert item.num_output_tokens < most, "a row after the last token"
        if isinstance(sequence.matcher, Matcher):
            assert sequence.matcher.accepted == sequence.token_ids[sequence.num_prompt_tokens :]
            assert not is_late
        self.late_rows += is_late
        return Row(item, known, is_late, list(sequence.block_table))

    def _compute(self, row: Row) -> int:
        item = row.item
        tokens = [*row.known, self.sampled[item.sequence]] if row.is_late else row.known
        state = start_of(item.adapters)
        for position, token in enumerate(tokens):
            state = chain(state, token)
            if position >= item.start:
                self.kv[row.slot(position)] = token, state
            assert self.kv[row.slot(position)] == (token, state), "not what stood there"
        self.dropped_rows += item.sequence.request.request_id not in self.live
        return next_token(state)


class Trace:
    """An engine's loop over a scheduler and a late device; passes and launches may fail."""

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
        self.passes: deque[tuple[Batch, list[Row]]] = deque()
        self.requests: dict[str, Request] = {}
        self.tokens: dict[str, list[int]] = {}
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
            self.scheduler.postprocess(batch, self.device.run(rows, batch))

    def _take(self, output: TokenOutput) -> None:
        name = output.request_id
        assert name not in self.ends, "it has ended already"
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
            max_tokens=rng.randint(1, 40),
            ignore_eos=rng.random() < 0.3,
            presence_penalty=rng.choice([0, 0, 0, 1]),
        )
        banned = rng.choice([(), (), ((3, 4),)])
        matcher = Matcher() if rng.random() < 0.2 else None
        if matcher:  # which ends at an end-of-sequence whatever ignore_eos says
            sampling = SamplingParams(max_tokens=sampling.max_tokens)
        made = Request(name, prompt, adapter, sampling, banned=banned)
        self.requests[name] = self.device.live[name] = made
        self.tokens[name] = []
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
def test_every_request_ends_once_with_the_tokens_that_it_would_get_alone(
    seed: int, depth: int
) -> None:
    trace = Trace(seed, depth)
    scheduler, cache, device = trace.scheduler, trace.cache, trace.device
    for number in range(200):
        if trace.rng.random() < 0.5:
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
        if end.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert got == whole
        else:
            assert got == whole[: len(got)]
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


def test_rows_that_need_their_token_on_the_host_take_every_second_pass_alone() -> None:
    scheduler = make()
    scheduler.add(request("free", max_tokens=20))
    scheduler.add(request("grammar", max_tokens=20), Matcher())
    for name in ("repetition", "presence", "frequency"):
        value = {f"{name}_penalty": 2.0}
        scheduler.add(request(name, max_tokens=20, **value))
    banned = request("banned", max_tokens=20)
    scheduler.add(Request("banned", banned.prompt_token_ids, "", banned.sampling, banned=((3,),)))
    waiting = {"grammar", "repetition", "presence", "frequency", "banned"}
    for index, batch in enumerate(launched(scheduler, 8)):
        rows = {name for name, _ in names(batch)}
        assert rows == ({"free"} if index % 2 else {"free"} | waiting)


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

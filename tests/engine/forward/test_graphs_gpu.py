"""Replayed passes give the logits of eager ones, whatever the mix of adapters and prompts.

On a GPU, or interpreted (see test_gpu_path): there a replay runs the same kernels once more on the
same static buffers, so that all but CUDA itself is tested.
"""

import random
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from multilora.adapters.checkpoint.adapter import Adapter
from multilora.forward.base_model import KVCache, load_base_model, read_base
from multilora.forward.graphs import Bucket, GraphLimits, PassGraphs, buckets
from multilora.forward.runner import ModelRunner
from multilora.forward.step_input import build_step_input, step_arrays
from multilora.lora.rank_pages import RankPagePool
from multilora.request import AdapterSet, Request
from multilora.scheduling.batch import Batch, BatchItem, make_batch
from multilora.scheduling.sequence import Sequence
from multilora_api.sampling import SamplingParams
from support.engine.reading import read_adapter
from support.kernels.cases import DEVICE, INTERPRETED, needs_gpu
from support.tiny.adapters import make_adapter
from support.tiny.base import TABLES, VOCAB, write_adapter, write_base
from support.tiny.families import make_model, write_model

pytestmark = needs_gpu
DTYPE = torch.float32
RANKS = (4, 16, 40, 8, 33, 16, 7)
ROWS, CONTEXT, BLOCK, PAGES, MIXED_ROWS = 12, 64, 8, 14, 64
MIXED = tuple(Bucket(rows, mixed=True) for rows in (16, 32, 64))
TOLERANCE = 1e-4
PARAMETERS = ["gate.weight", "experts.gate_up_proj", "experts.down_proj"]


@dataclass
class Bench:
    """A tiny model whose sequences have adapters that are placed by hand."""

    folder: Path
    sizes: tuple[int | Bucket, ...] | None = None  # a number is of a decode pass
    placed: dict[AdapterSet, tuple[int, ...]] = field(default_factory=dict)
    tables: tuple[str, ...] = ()  # on which the adapters act, too
    mixture: str = ""  # a family; adapters act on its experts and routers, too

    def __post_init__(self) -> None:
        if self.mixture:
            write_model(make_model(self.mixture, num_hidden_layers=1), self.folder / "base")
        else:
            write_base(self.folder / "base")
        base = read_base(self.folder / "base", "auto")
        self.base = base.with_places(base.optional[2:] if self.mixture else self.tables)
        self.device = torch.device(DEVICE)
        model = load_base_model(self.folder / "base", self.base, DTYPE, self.device, CONTEXT)
        kv = KVCache(self.base, ROWS * CONTEXT // BLOCK, BLOCK, DTYPE, self.device)
        for cache in (kv.k, kv.v):  # of tokens that nobody has computed, which takes time
            cache.copy_(torch.randn(cache.shape, generator=torch.Generator().manual_seed(0)))
        pages = RankPagePool(self.base.sites, PAGES, DTYPE, self.device)
        limits = GraphLimits(ROWS, CONTEXT, 3, MIXED_ROWS)
        graphs = PassGraphs(model, kv, pages, limits, self.device)
        sizes = self.sizes or buckets(limits)
        graphs.capture([Bucket(x) if isinstance(x, int) else x for x in sizes])
        self.runner = ModelRunner(model, kv, pages, (), self.device, DTYPE, graphs)
        self.sequences: list[Sequence] = []

    def adapter(self, index: int) -> Adapter:
        folder = self.folder / f"adapter{index}"
        if not folder.exists():
            rank = RANKS[index % len(RANKS)]
            if self.mixture:
                config = {"r": rank, "target_modules": ["q_proj"], "target_parameters": PARAMETERS}
                make_adapter(folder, self.mixture, index, num_hidden_layers=1, **config)
            else:
                write_adapter(folder, index, rank, tables=self.tables)
        return read_adapter(folder, f"adapter{index}", self.base.sites, DTYPE, 48)

    def place(self, index: int, *pages: int) -> str:
        """Write an adapter into the pool, over whatever stood there."""
        adapter = self.adapter(index)
        self.runner.adapters.write(pages, adapter.weights)
        self.placed[AdapterSet.of(adapter.adapter_id)] = pages
        return adapter.adapter_id

    def start(self, adapter_id: str, length: int, uncomputed: int = 1) -> Sequence:
        """A sequence whose K and V are there, some numbers, but for the last tokens'."""
        number = len(self.sequences)
        prompt = tuple((number * 31 + 7 * i) % VOCAB for i in range(length))
        sequence = Sequence(Request(str(number), prompt, adapter_id, SamplingParams()))
        sequence.adapters = AdapterSet.of(adapter_id)
        count = CONTEXT // BLOCK
        sequence.block_table = array("i", range(number * count, (number + 1) * count))
        self.sequences.append(sequence)
        sequence.num_computed_tokens = length - uncomputed
        return sequence

    def eager(self, batch: Batch) -> torch.Tensor:
        runner = self.runner
        sampled = self.base.adapts_sampled
        inputs = build_step_input(batch, BLOCK, self.device, DTYPE, with_sampled=sampled)
        return runner.model.forward(inputs, runner.kv, runner.adapters).cpu()

    @torch.inference_mode()
    def replayed(self, batch: Batch) -> torch.Tensor:
        arrays = step_arrays(batch, BLOCK)
        assert self.runner.graphs is not None
        captured = self.runner.graphs.find(arrays)
        assert captured is not None, "the pass was not replayed"
        assert captured.bucket.mixed == any(item.num_new_tokens > 1 for item in batch.items)
        staging, run = captured.prepare(arrays)
        staging.send()
        return run().clone().cpu()  # the next replay overwrites it

    def check(self, sequences: list[Sequence], new: list[int] | None = None) -> torch.Tensor:
        """One more token of each, or `new` ones, eager and replayed; they then advance by these."""
        counts = new or [1] * len(sequences)
        work = list(zip(sequences, counts, strict=True))
        batch = make_batch([BatchItem.next(*one) for one in work], self.placed)
        before = self.runner.kv.k.clone(), self.runner.kv.v.clone()
        eager = self.eager(batch)
        after = self.runner.kv.k.clone(), self.runner.kv.v.clone()
        self.runner.kv.k.copy_(before[0])
        self.runner.kv.v.copy_(before[1])
        replayed = self.replayed(batch)
        torch.testing.assert_close(replayed, eager, rtol=0, atol=TOLERANCE)
        for cache, want in zip((self.runner.kv.k, self.runner.kv.v), after, strict=True):
            assert (cache - want).abs().max() < TOLERANCE, "K and V went elsewhere"
        for sequence, count in work:
            sequence.num_computed_tokens += count
            if sequence.num_tokens_in_flight:
                sequence.token_ids.append(sequence.num_computed_tokens * 5 % VOCAB)
        return replayed


def test_any_number_of_adapters_beside_base_rows(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    pages = [(0,), (1,), (2, 5, 3), (4,), (6, 13, 9), (7,), (8,)]
    names = [bench.place(index, *own) for index, own in enumerate(pages)]
    by_name = {name: bench.start(name, 3 + 5 * i) for i, name in enumerate(names)}
    base = [bench.start("", length) for length in (1, 30)]
    seven = list(by_name.values())
    for mix in (seven[:1], base, seven[1:3] + base):
        bench.check(mix)
    alone = bench.check([seven[2]])
    seven[2].num_computed_tokens -= 1
    del seven[2].token_ids[-1]
    together = bench.check([*seven, *base])
    assert (together[2] - alone[0]).abs().max() < TOLERANCE, "neighbours changed an answer"


def test_experts_whatever_the_router_says(tmp_path: Path) -> None:
    """How many rows go to which expert is known on the device alone."""
    bench = Bench(tmp_path, sizes=(4, Bucket(32, mixed=True)), mixture="qwen3_moe")
    pages = [(0,), (9,), (2, 5, 3)]
    names = [bench.place(index, *own) for index, own in enumerate(pages)]
    rows = [bench.start(name, 3 + 5 * i) for i, name in enumerate([*names, ""])]
    for mix in (rows, rows[1:3]):
        bench.check(mix)
    alone = bench.check(rows[2:3])
    prompt = bench.start(names[2], 20, 20)
    bench.check([prompt, *rows[:2], rows[3]], [20, 1, 1, 1])
    rows[2].num_computed_tokens -= 1
    del rows[2].token_ids[-1]
    beside = bench.check([bench.start(names[0], 12, 12), rows[2], bench.start("", 9)], [12, 1, 1])
    assert (beside[1] - alone[0]).abs().max() < TOLERANCE, "neighbours changed an answer"


def test_pages_that_change_owners_between_replays(tmp_path: Path) -> None:
    """The graph holds page addresses, never what stood there when it was captured."""
    bench = Bench(tmp_path, sizes=(4, ROWS), tables=tuple(TABLES))
    first, second = bench.place(0, 3), bench.place(2, 1, 2, 0)
    sequences = [bench.start(first, 9), bench.start(second, 20), bench.start("", 5)]
    before = bench.check(sequences)
    for sequence in sequences:
        sequence.num_computed_tokens -= 1
        del sequence.token_ids[-1]
    bench.place(7, 3)  # evicted, its page given to another
    bench.placed[AdapterSet.of(first)] = (11,)
    bench.runner.adapters.write((11,), bench.adapter(0).weights)
    moved = bench.check(sequences)
    assert (before - moved).abs().max() < TOLERANCE
    sequences[0].num_computed_tokens -= 1
    del sequences[0].token_ids[-1]
    bench.runner.adapters.write((11,), bench.adapter(3).weights)  # replaced where it stands
    assert (bench.check(sequences[:1])[0] - before[0]).abs().max() > 0.01


def test_a_pool_full_of_adapters_and_many_rows_of_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sizes=(ROWS,))
    names = [bench.place(2, 3 * i, 3 * i + 1, 3 * i + 2) for i in range(4)]
    bench.placed = {key: bench.placed[key] for key in map(AdapterSet.of, names)}
    single = [bench.place(index, 12 + index) for index in (0, 1)]
    crowd = [bench.start(names[0], 2 + i) for i in range(8)]
    others = [bench.start(name, 6) for name in single]
    bench.check([*crowd, *others, bench.start("", 3), bench.start("", 3)])


@pytest.fixture(name="nan")
def fresh_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def nan(*size: object, **keywords: object) -> torch.Tensor:
        made = empty(*size, **keywords)  # pyright: ignore[reportCallIssue, reportArgumentType]
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", nan)


@pytest.mark.usefixtures("nan")
def test_prompts_beside_decode_rows(tmp_path: Path) -> None:
    """Whole prompts, chunks of them, with and without a cached prefix. Adapters of tables, so that
    it matters which rows sample."""
    bench = Bench(tmp_path, sizes=MIXED, tables=tuple(TABLES))
    pages = [(0,), (1,), (2, 5, 3), (4,), (6, 13, 9), (7,), (8,)]
    names = [bench.place(index, *own) for index, own in enumerate(pages)]
    bench.check([bench.start(names[2], 28, 28)], [28])  # a prompt alone
    bench.check([bench.start("", 12, 12), bench.start("", 9)], [12, 1])
    two = [bench.start(names[0], 30, 20), bench.start(names[4], 7), bench.start(names[4], 3, 3)]
    chunk = bench.check([*two, bench.start("", 5)], [7, 1, 2, 1])
    assert len(chunk) == 2, "chunks do not sample"


@pytest.mark.usefixtures("nan")
def test_prompts_of_every_adapter(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sizes=MIXED)
    pages = [(0,), (1,), (2, 5, 3), (4,), (6, 13, 9), (7,), (8,)]
    names = [bench.place(index, *own) for index, own in enumerate(pages)]
    every = [bench.start(name, 5 + 5 * i, 1 + 2 * (i % 3)) for i, name in enumerate(names)]
    every[0] = bench.start(names[0], 2, 2)
    more = [bench.start("", 9, 9), bench.start("", 20)]
    together = bench.check([*every, *more], [2, 2, 5, 1, 3, 5, 1, 9, 1])
    assert len(together) == 8
    again = every[2]
    again.num_computed_tokens -= 5
    del again.token_ids[-1]
    alone = bench.check([again], [5])[0]
    assert (alone - together[1]).abs().max() < TOLERANCE, "neighbours changed an answer"


@pytest.mark.parametrize("seed", range(1 if INTERPRETED else 8))
def test_a_random_trace_with_evictions(tmp_path: Path, seed: int) -> None:
    """Adapters come, go, and come back on other pages between the passes of their sequences."""
    noise, most = random.Random(seed), 16 if INTERPRETED else MIXED_ROWS
    bench = Bench(tmp_path, sizes=(4, ROWS, *MIXED))
    live: list[Sequence] = []
    for step in range(3 if INTERPRETED else 40):
        if step % 2 == 0:
            free = noise.sample(range(PAGES), PAGES)
            bench.placed = {}
            for index in noise.sample(range(len(RANKS)), 5):
                own = [free.pop() for _ in range(-(-RANKS[index] // 16)) if free]
                if len(own) * 16 >= RANKS[index]:
                    bench.place(index, *own)
        while len(bench.sequences) < min(ROWS, 4 + 3 * step):
            name = noise.choice(["", *(key.only for key in bench.placed)])
            length = noise.randint(1, 40)
            live.append(bench.start(name, length, noise.randint(1, length)))
        work: dict[int, int] = {}
        for index in noise.sample(range(len(live)), noise.randint(1, len(live))):
            left = min(live[index].num_uncomputed_tokens, most - sum(work.values()))
            key, room = live[index].adapters, len(live[index].token_ids) < CONTEXT
            if left and room and (not key or key in bench.placed):
                work[index] = noise.choice([left, noise.randint(1, left)])
        if work:
            bench.check([live[index] for index in work], list(work.values()))


def test_what_is_replayed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sizes=(2, 4, *MIXED[:2]))
    graphs = bench.runner.graphs
    assert graphs is not None
    name = bench.place(0, 0)
    rows = [bench.start(name if i % 2 else "", 4 + i) for i in range(5)]
    found = [
        graphs.find(step_arrays(make_batch(items, bench.placed), BLOCK))
        for items in (
            [BatchItem.next(rows[0], 1)],
            [BatchItem.next(row, 1) for row in rows[:3]],
            [BatchItem.next(row, 1) for row in rows],  # more than was captured
        )
    ]
    assert [one and (one.bucket.rows, one.with_lora) for one in found] == [
        (2, False), (4, True), None,
    ]  # fmt: skip
    prompts = [bench.start(name, length, length) for length in (15, 16)]
    long = [BatchItem.next(prompt, len(prompt.token_ids)) for prompt in prompts]
    unfinished = BatchItem.next(prompts[0], 1)
    decode = [BatchItem.next(row, 1) for row in rows]
    crowd = [BatchItem.next(bench.start("", 1), 1) for _ in range(ROWS)]
    for items, size in (
        ([unfinished, decode[0]], Bucket(2)),
        ([long[0], decode[0]], MIXED[0]),
        ([long[1], decode[0]], MIXED[1]),
        ([*long, decode[0]], MIXED[1]),
        ([*long, *decode[:2]], None),
        ([long[0], *crowd], None),  # more sequences than may run
    ):
        captured = graphs.find(step_arrays(make_batch(items, bench.placed), BLOCK))
        assert (captured and captured.bucket) == size


def test_the_runner_gives_the_tokens_of_the_logits(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sizes=(4,))
    name = bench.place(4, 2, 0, 1)
    rows = [bench.start(name, 9), bench.start("", 4), bench.start("", 1)]
    batch = make_batch([BatchItem.next(row, 1) for row in rows], bench.placed)
    want = bench.eager(batch).argmax(-1).tolist()
    assert [token.token_id for token in bench.runner.launch(batch).tokens()] == want


def test_the_tokens_of_a_replay_outlive_the_next_one(tmp_path: Path) -> None:
    """Both replays use the same buffers, and the second is launched before the first is read."""
    bench = Bench(tmp_path, sizes=(4,))
    name = bench.place(4, 2, 0, 1)
    rows = [bench.start(name, 9), bench.start("", 4), bench.start(name, 5), bench.start("", 8)]
    batches = [
        make_batch([BatchItem.next(row, 1) for row in pair], bench.placed)
        for pair in (rows[:2], rows[2:])
    ]
    want = [bench.eager(batch).argmax(-1).tolist() for batch in batches]
    assert want[0] != want[1]
    in_flight = [bench.runner.launch(batch) for batch in batches]
    assert [[token.token_id for token in one.tokens()] for one in in_flight] == want


@contextmanager
def never_waiting() -> Iterator[None]:
    """Raises where the host waits for the device."""
    mode = torch.cuda.get_sync_debug_mode() if torch.cuda.is_available() else None
    if mode is not None:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if mode is not None:
            torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("replay", [True, False])
def test_tokens_go_from_one_pass_to_the_next_on_the_device(tmp_path: Path, replay: bool) -> None:
    """The second pass is launched before the host knows what the first has sampled. Its rows come
    in another order, between them a prompt, and one of the late tokens is penalised."""
    bench = Bench(tmp_path, sizes=(4, *MIXED[:1]))
    name = bench.place(4, 2, 0, 1)
    rows = [bench.start(name, 9), bench.start("", 4), bench.start(name, 5), bench.start("", 8, 8)]
    penalty = SamplingParams(max_tokens=9, frequency_penalty=2.0)
    rows[1].request = replace(rows[1].request, sampling=penalty)
    first = make_batch([BatchItem.next(row, 1) for row in rows[:3]], bench.placed)
    in_flight = bench.runner.launch(first, replay)
    for item in first.items:
        item.sequence.num_computed_tokens = item.end
    rows[1].arrival, rows[2].arrival, rows[3].arrival = 3, -1, 2
    counts = [row.num_uncomputed_tokens for row in rows]
    behind = make_batch(list(map(BatchItem.next, rows, counts)), bench.placed)
    assert [rows.index(item.sequence) for item in behind.items] == [2, 0, 3, 1]
    assert [item.num_new_tokens for item in behind.items] == [1, 1, 8, 1]
    with never_waiting():
        second = bench.runner.launch(behind, replay)
    sampled = second.tokens()
    for item, token in zip(first.items, in_flight.tokens(), strict=True):
        item.sequence.token_ids.append(token.token_id)
    assert bench.runner.launch(behind, replay=False).tokens() == sampled
    for row in rows[:3]:
        row.token_ids[-1] = (row.token_ids[-1] + 1) % VOCAB
    assert bench.runner.launch(behind, replay=False).tokens() != sampled, "any would have done"

"""A device that runs passes late, and an answer that everybody can work out; no tensors.

The device's memory says what stands in each KV slot and adapter page, so that it notices what was
overwritten, or is read, too early. The token after some tokens depends on all of them and on the
adapter, and so does what is said of a token of a prompt.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from zlib import crc32

from multilora.request import AdapterSet, PromptToken, Request
from multilora.scheduling.adapter_cache import CacheMiss
from multilora.scheduling.batch import Batch, BatchItem, SampledToken
from multilora.scheduling.sequence import Sequence
from support.engine.scheduler import BLOCK, EOS, FakeCache

MOST = 70  # tokens of a sequence


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


def scores(request: Request) -> list[PromptToken]:
    """What is to be said of the prompt: of each token but the first, once and in order."""
    state, told = start_of(request.adapters), list[PromptToken]()
    if request.sampling.prompt_logprobs is not None:
        for before, token in pairwise(request.prompt_token_ids):
            state = chain(state, before)
            told.append(said_of(token, state))
    return told


def said_of(token: int, state: int) -> PromptToken:
    """`state` is that of the tokens before it."""
    return PromptToken(token, -float(state), (), 1)


class Matcher:
    """Allows everything, and knows what it has accepted."""

    def __init__(self) -> None:
        self.error: str | None = None
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

    def run(
        self, rows: list[Row], batch: Batch
    ) -> tuple[list[SampledToken], list[tuple[PromptToken, ...]]]:
        """As InFlight.tokens and InFlight.prompts."""
        for span in batch.spans:
            assert {self.pages.content[page] for page in span.pages} == {span.adapters.only}
        self.sampled = {row.item.sequence: self._compute(row) for row in rows}
        tokens = [self.sampled[row.item.sequence] for row in rows if row.item.samples]
        prompts = [self._say(row) for row in rows if row.item.scored]
        return [SampledToken(token) for token in tokens], prompts

    def _row(self, item: BatchItem) -> Row:
        sequence = item.sequence
        known = sequence.token_ids[: item.end]
        is_late = len(known) < item.end
        if is_late:
            assert len(known) + 1 == item.end and sequence in self.launched
            assert not sequence.request.banned
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

    def _say(self, row: Row) -> tuple[PromptToken, ...]:
        places, prompt = row.item.scored, row.item.sequence.request.prompt_token_ids
        assert row.item.start < places[0] and places[-1] <= row.item.end, "not of this pass"
        return tuple(said_of(prompt[place], self.kv[row.slot(place - 1)][1]) for place in places)

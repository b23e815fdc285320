"""A Batch as tensors: rows, positions, slots and tables of a batch of every kind of item."""

import dataclasses
from array import array

import pytest
import torch

from multilora.base_model.config import NativeConfig, RopeConfig
from multilora.forward.base_model import KVCache
from multilora.forward.step_input import StepInput, build_step_input
from multilora.request import AdapterSet, Request
from multilora.scheduling.batch import Batch, BatchItem, make_batch
from multilora.scheduling.sequence import Sequence
from multilora_kernels.segments import Segment

CPU = torch.device("cpu")


def item(prompt: int, computed: int, new: int, blocks: list[int], adapter: str = "") -> BatchItem:
    sequence = Sequence(Request("r", tuple(range(100, 100 + prompt)), adapter))
    sequence.adapters = AdapterSet.of(adapter)
    sequence.num_computed_tokens = computed
    sequence.block_table = array("i", blocks)
    return BatchItem.next(sequence, new)


def build(batch: Batch) -> StepInput:
    return build_step_input(batch, 4, CPU, torch.float32)


def test_prefill_chunk_and_decode_in_one_batch() -> None:
    items = (
        item(prompt=6, computed=0, new=6, blocks=[7, 2]),
        item(prompt=9, computed=3, new=4, blocks=[5, 0, 9]),  # the third block is not needed yet
        item(prompt=5, computed=4, new=1, blocks=[1, 3]),
    )
    inp = build(Batch(items, ()))
    assert inp.input_ids.tolist() == [100, 101, 102, 103, 104, 105, 103, 104, 105, 106, 104]
    assert inp.positions.tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 4]
    assert inp.kv_slots.tolist() == [28, 29, 30, 31, 8, 9, 23, 0, 1, 2, 12]
    assert inp.cu_seqlens_q.tolist() == [0, 6, 10, 11]
    assert inp.context_lens.tolist() == [6, 7, 5]
    assert inp.block_tables.tolist() == [[7, 2], [5, 0], [1, 3]]
    assert inp.last_token_indices.tolist() == [5, 10]
    assert inp.query_tiles.tolist() == [[6, 4, 3, 1], [0, 6, 0, 0]]  # the one decode row has none
    assert inp.segments is None
    wide = (inp.input_ids, inp.positions, inp.kv_slots, inp.last_token_indices)
    narrow = (inp.cu_seqlens_q, inp.context_lens, inp.block_tables, inp.query_tiles)
    assert {tensor.dtype for tensor in wide} == {torch.int64}
    assert {tensor.dtype for tensor in narrow} == {torch.int32}


def test_short_tables_are_padded_and_nothing_may_be_sampled() -> None:
    items = (item(20, 0, 10, [1, 2, 3]), item(20, 0, 2, [4]))
    inp = build(Batch(items, ()))
    assert inp.block_tables.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert inp.last_token_indices.shape == (0,)


@pytest.mark.parametrize(
    ("items", "fresh"),
    [
        ([(6, 0, 6), (5, 4, 1)], True),  # (prompt, computed, new)
        ([(6, 0, 6), (9, 3, 4)], False),
        ([(1, 0, 1), (5, 4, 1)], False),  # nobody has several rows
    ],
)
def test_prompts_are_fresh_without_context_before_several_rows(
    items: list[tuple[int, int, int]], fresh: bool
) -> None:
    batch = Batch(tuple(item(*lengths, blocks=[1, 2, 3]) for lengths in items), ())
    assert build(batch).has_fresh_prompts == fresh


def test_adapter_rows_become_segments() -> None:
    items = [
        item(3, 2, 1, [1]),
        item(4, 0, 4, [2], "b"),
        item(2, 1, 1, [3], "a"),
        item(3, 0, 3, [4], "a"),
    ]
    inp = build(make_batch(items, {AdapterSet.of("a"): (1, 5), AdapterSet.of("b"): (6,)}))
    assert inp.positions.tolist() == [1, 0, 1, 2, 0, 1, 2, 3, 2]
    assert inp.segments is not None
    assert inp.segments.segments == (Segment(0, 4, (1, 5)), Segment(4, 4, (6,)))
    assert inp.segments.num_rows == 9


def test_rows_that_sample_have_segments_of_their_own() -> None:
    """Of three adapters: one has no such row, one has two."""
    items = [
        item(3, 2, 1, [1]),
        item(4, 0, 4, [2], "b"),
        item(2, 1, 1, [3], "a"),
        item(3, 0, 3, [4], "a"),
        item(9, 0, 2, [5], "c"),
    ]
    pages = {AdapterSet.of("a"): (1, 5), AdapterSet.of("b"): (6,), AdapterSet.of("c"): (7,)}
    batch = make_batch(items, pages)
    inp = build_step_input(batch, 4, CPU, torch.float32, with_sampled=True)
    assert inp.last_token_indices.tolist() == [0, 3, 7, 10]
    assert inp.sampled is not None and inp.sampled.num_rows == 4
    assert [segment for segment in inp.sampled.segments if segment.row_count] == [
        Segment(0, 2, (1, 5)),
        Segment(2, 1, (6,)),
    ]
    assert build(batch).sampled is None


def test_rows_are_those_that_were_scheduled() -> None:
    """The sequences have gone on: a token was appended, all of the prompt is computed."""
    items = (item(prompt=6, computed=0, new=6, blocks=[7, 2]), item(5, 4, 1, [1, 3]))
    before = build(Batch(items, ()))
    for one in items:
        one.sequence.num_computed_tokens = one.end
        one.sequence.token_ids.append(99)
    after = build(Batch(items, ()))
    for field in dataclasses.fields(StepInput):
        ours, theirs = getattr(before, field.name), getattr(after, field.name)
        if isinstance(ours, torch.Tensor):
            assert ours.tolist() == theirs.tolist(), field.name
        else:
            assert ours == theirs, field.name
    assert after.last_token_indices.tolist() == [5, 6]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_gets_what_the_host_has() -> None:
    items = [item(6, 0, 6, [7, 2], "a"), item(9, 3, 4, [5, 0, 9]), item(5, 4, 1, [1, 3])]
    batch = make_batch(items, {AdapterSet.of("a"): (5, 1)})
    there = build_step_input(batch, 4, torch.device("cuda"), torch.float32)
    for field in dataclasses.fields(StepInput):
        ours, theirs = getattr(build(batch), field.name), getattr(there, field.name)
        if isinstance(ours, torch.Tensor):
            assert theirs.is_cuda and theirs.dtype == ours.dtype and theirs.data_ptr() % 16 == 0
            assert theirs.tolist() == ours.tolist()


def test_kv_cache_is_as_large_as_it_says() -> None:
    base = NativeConfig(
        "LlamaForCausalLM", 8, 64, 3, 4, 2, 16, 128, True, "float32",
        96, 1e-6, RopeConfig(), False, False, False, False, (None,) * 3,
    )  # fmt: skip
    kv = KVCache(base, num_blocks=5, block_size=8, dtype=torch.bfloat16, device=CPU)
    assert kv.k.shape == kv.v.shape == (3, 5, 8, 2, 16)
    assert kv.k.nbytes + kv.v.nbytes == 5 * KVCache.bytes_per_block(base, 8, torch.bfloat16)
    assert not kv.k.any() and not kv.v.any()

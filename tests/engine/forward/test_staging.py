"""A StagingBuffer gives back what was added, packed and aligned, wherever it was copied to."""

import numpy as np
import pytest
import torch

from multilora.forward.staging import StagingBuffer, offsets

CPU = torch.device("cpu")
ARRAYS = (
    np.arange(5, dtype=np.int64),
    np.array([[1.5, -2.0], [0.25, 3.0]], dtype=np.float32),
    np.zeros((0, 4), dtype=np.int32),
    np.array([True, False, True]),
    np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2],  # not contiguous
)


def check(staging: StagingBuffer) -> list[torch.Tensor]:
    handles = [staging.add(array) for array in ARRAYS]
    staging.send()
    tensors = [handle() for handle in handles]
    for tensor, array in zip(tensors, ARRAYS, strict=True):
        assert np.array_equal(tensor.cpu().numpy(), array)
        assert tensor.cpu().numpy().dtype == array.dtype
    return tensors


def test_a_cpu_copies_nothing() -> None:
    assert check(StagingBuffer(CPU))[0].data_ptr() == ARRAYS[0].ctypes.data


@pytest.mark.parametrize("spare", [0, 64])
def test_a_static_buffer_is_filled_side_by_side(spare: int) -> None:
    starts, end = offsets([array.nbytes for array in ARRAYS])
    assert all(start % 16 == 0 for start in starts)
    target = torch.full((end + spare,), 255, dtype=torch.uint8)
    for tensor, start in zip(check(StagingBuffer(CPU, target)), starts, strict=True):
        assert tensor.data_ptr() - target.data_ptr() == start or not tensor.numel()
    assert (target[end:] == 255).all()


def test_what_a_static_buffer_has_no_room_for_is_still_there() -> None:
    starts, _ = offsets([array.nbytes for array in ARRAYS])
    target = torch.zeros(starts[1], dtype=torch.uint8)
    check(StagingBuffer(CPU, target))
    assert target[:40].view(torch.int64).tolist() == [0, 1, 2, 3, 4]


def test_no_array_is_no_work() -> None:
    StagingBuffer(CPU).send()
    StagingBuffer(CPU, torch.zeros(16, dtype=torch.uint8)).send()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_a_gpu_gets_one_buffer() -> None:
    tensors = check(StagingBuffer(torch.device("cuda")))
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors)

"""Words written by hand, and files that do not hold what config.json says."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from multilora.base_model.config import NativeConfig
from multilora.base_model.quantised.matrix import QuantisedMatrix
from multilora.base_model.quantised.readers import awq, gptq, packed, scaled
from multilora.base_model.weights import load_weights
from multilora.errors import StartupError
from support.tiny.quantised import write_quantised

ONES = torch.ones(1, 8, dtype=torch.float16)
FIRST = "model.layers.0.self_attn.q_proj"


def word(number: int) -> torch.Tensor:
    return torch.tensor([[number - (1 << 32) if number >> 31 else number]], dtype=torch.int32)


def numbers(matrix: QuantisedMatrix) -> list[list[float]]:
    return matrix.dequantised(torch.float32).tolist()


def test_gptq_has_its_lowest_column_in_the_lowest_bits() -> None:
    """Eight rows; a zero point is written as the number before it, 0 as the highest."""
    rows = word(0xFEDCBA98).expand(1, 8)
    matrix = gptq(rows, word(0xF6543210), ONES, None, 4, 8, 1)
    zeros = [1, 2, 3, 4, 5, 6, 7, 0]
    assert numbers(matrix) == [[q - zero for q in range(8, 16)] for zero in zeros]


def test_awq_has_even_columns_before_odd_ones() -> None:
    matrix = awq(word(0x75316420), word(0), ONES, 1)
    assert numbers(matrix) == [[0], [1], [2], [3], [4], [5], [6], [7]]


def test_compressed_tensors_adds_the_middle_to_codes_and_zero_points() -> None:
    scale = ONES[:, :1]
    assert numbers(packed(word(0xF0F0F087), scale, None, None, 4, 8)) == [
        [-1, 0, -8, 7, -8, 7, -8, 7]
    ]
    assert numbers(packed(word(0x887), scale, word(0x9), None, 4, 3)) == [[-2, -1, -1]]
    assert numbers(packed(word(0xFF818000), scale, None, None, 8, 4)) == [[-128, 0, 1, 127]]


@pytest.mark.parametrize("shape", [(), (1,), (2,), (2, 1)])
def test_scales_of_all_and_of_rows(shape: tuple[int, ...]) -> None:
    scale = torch.full(shape, 0.5)
    matrix = scaled(torch.tensor([[2, 4], [-6, 8]], dtype=torch.int8), scale, None, (128, 128))
    assert matrix and numbers(matrix) == [[1, 2], [-3, 4]]


def test_zero_points_of_whole_bytes_count() -> None:
    weight, zero = torch.tensor([[2, 4]], dtype=torch.int8), torch.tensor([[1]], dtype=torch.int8)
    matrix = scaled(weight, torch.tensor([[0.5]]), zero, (128, 128))
    assert matrix and numbers(matrix) == [[0.5, 1.5]]


def test_groups_of_other_sizes_are_read() -> None:
    """A g_idx that gives one group more columns than another."""
    scales = torch.tensor([[1.0], [10.0]], dtype=torch.float16).expand(2, 8)
    zeros = torch.zeros(2, 1, dtype=torch.int32)
    g_idx = torch.tensor([1, 0, 1, 1, 1, 0, 1, 1], dtype=torch.int32)
    matrix = gptq(word(0x76543210).expand(1, 8), zeros, scales, g_idx, 4, 4, 0)
    assert numbers(matrix) == [[0, 1, 20, 30, 40, 5, 60, 70]] * 8


@pytest.mark.parametrize(
    ("form", "kind", "change", "message"),
    [
        ("gptq", "qzeros", None, f"no weight file has tensor {FIRST}.qzeros"),
        ("gptq", "scales", lambda t: t[:1], r"q_proj\.scales has shape \[1, 64\] but .*\[2, 64\]"),
        ("W4A16 zero points", "weight_zero_point", None, f"has tensor {FIRST}.weight_zero_point"),
        ("W8A8 zero points", "weight_zero_point", None, f"has tensor {FIRST}.weight_zero_point"),
        ("awq", "qweight", lambda t: t[:32], r"has shape \[32, 8\] but .* \[64, 8\]"),
        ("W4A16", "weight_scale", lambda t: t[:8], r"weight_scale has shape \[8, 2\]"),
        ("fp8 blocks", "weight_scale_inv", lambda t: t[:1], r"weight_scale_inv has shape \[1, 2\]"),
        (
            "fp8",
            "weight",
            lambda t: t.half(),
            r"q_proj\.weight is torch\.float16, and config\.json",
        ),
    ],
)
def test_files_that_do_not_hold_what_config_json_says(
    tmp_path: Path,
    form: str,
    kind: str,
    change: Callable[[torch.Tensor], torch.Tensor] | None,
    message: str,
) -> None:
    write_quantised(form, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    found = tensors.pop(f"{FIRST}.{kind}")
    if change:
        tensors[f"{FIRST}.{kind}"] = change(found).contiguous()
    save_file(tensors, file)
    with pytest.raises(StartupError, match=message):
        load_weights(
            tmp_path, NativeConfig.from_folder(tmp_path), torch.float32, torch.device("cpu")
        )


def test_modules_that_are_left_alone_and_a_head_that_is_not(tmp_path: Path) -> None:
    """In the files, whatever lists of exceptions say."""
    model = write_quantised("W8A8", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    head = tensors.pop("lm_head.weight")
    scale = head.abs().amax(1, keepdim=True) / 127
    tensors |= {"lm_head.weight": (head / scale).round().to(torch.int8)}
    tensors |= {"lm_head.weight_scale": scale}
    del tensors[f"{FIRST}.weight_scale"]
    plain = dict(model.named_parameters())[f"{FIRST}.weight"].detach()
    tensors[f"{FIRST}.weight"] = plain.clone()
    save_file(tensors, file)
    base = NativeConfig.from_folder(tmp_path)
    weights = load_weights(tmp_path, base, torch.float32, torch.device("cpu"))
    assert weights.quantised and weights.quantised.forms["float32"] == 1
    y = weights.sites["layers.0.qkv"].multiply(torch.eye(base.hidden_size))
    torch.testing.assert_close(y.T[: len(plain)], plain)
    torch.testing.assert_close(weights.lm_head, (head / scale).round() * scale)

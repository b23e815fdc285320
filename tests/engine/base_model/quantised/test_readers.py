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
    assert matrix.scales.dtype == torch.float32, "whatever the files have: products ask for it"
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
    assert numbers(packed(word(0xF0F0F087), scale, None, None, 4, 8, 8)) == [
        [-1, 0, -8, 7, -8, 7, -8, 7]
    ]
    assert numbers(packed(word(0x887), scale, word(0x9), None, 4, 3, 3)) == [[-2, -1, -1]]
    assert numbers(packed(word(0xFF818000), scale, None, None, 8, 4, 4)) == [[-128, 0, 1, 127]]


@pytest.mark.parametrize("shape", [(), (1,), (2,), (2, 1)])
def test_scales_and_zero_points_of_all_and_of_rows(shape: tuple[int, ...]) -> None:
    weight = torch.tensor([[2, 4], [-6, 8]], dtype=torch.int8)
    scale, zero = torch.full(shape, 0.5).half(), torch.ones(shape, dtype=torch.int8)
    matrix, shifted = (scaled(weight, scale, zeros, (128, 128), 2) for zeros in (None, zero))
    assert matrix and numbers(matrix) == [[1, 2], [-3, 4]]
    assert shifted and numbers(shifted) == [[0.5, 1.5], [-3.5, 3.5]]
    assert shifted.offsets is not None and shifted.offsets.shape == shifted.scales.shape


def test_a_shorter_group_comes_last() -> None:
    scales = torch.tensor([[1.0, 10.0]])
    matrix = packed(word(0x9ABCDEF9), scales, None, None, 4, 8, 6)
    assert numbers(matrix) == [[1, 7, 6, 5, 4, 3, 20, 10]]
    whole = scaled(torch.ones(1, 8, dtype=torch.int8), scales, None, (128, 128), 6)
    assert whole and numbers(whole) == [[1] * 6 + [10] * 2]


def test_blocks_have_no_zero_points() -> None:
    weight, scale = torch.ones(4, 4, dtype=torch.int8), torch.ones(2, 2)
    assert scaled(weight, scale, None, (2, 2), 2)
    assert scaled(weight, scale, torch.ones(2, 2, dtype=torch.int8), (2, 2), 2) is None


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
        ("W4A16", "weight_scale", lambda t: t.repeat(1, 40), r"weight_scale has shape \[64, 80\]"),
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


@pytest.mark.parametrize("form", ["W8A8", "fp8", "W4A16", "gptq"])
def test_files_may_change_once_they_are_read(form: str, tmp_path: Path) -> None:
    write_quantised(form, tmp_path)
    base = NativeConfig.from_folder(tmp_path)
    sites = load_weights(tmp_path, base, torch.float32, torch.device("cpu")).sites
    x = torch.randn(3, base.hidden_size)
    before = {name: sites[name].multiply(x) for name in ("layers.0.qkv", "layers.0.o")}
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as content:  # in place: mapped memory would show it
        content.write(b"\x55" * file.stat().st_size)
    for name, y in before.items():
        assert torch.equal(sites[name].multiply(x), y)


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

"""What a quantization_config says, what the flag may say beside it, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from multilora.base_model.quantised.scheme import Scheme, read_scheme
from multilora.errors import StartupError

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


def groups_of(name: str, *values: Any) -> dict[str, Any]:
    """Groups of modules with these values of a field of their weights."""
    groups = ({"weights": {"num_bits": 4, name: value}} for value in values)
    return {"config_groups": {f"group_{index}": group for index, group in enumerate(groups)}}


def read(folder: Path, **config: Any) -> Scheme:
    (folder / "config.json").write_text(json.dumps(config))
    return read_scheme(folder)


@pytest.mark.parametrize(
    ("config", "scheme"),
    [
        (None, Scheme()),
        (GPTQ, Scheme("gptq", group_size=128, first_zero=1)),
        (GPTQ | {"group_size": -1, "bits": 8}, Scheme("gptq", bits=8, first_zero=1)),
        (GPTQ | {"checkpoint_format": "gptq_v2"}, Scheme("gptq", group_size=128)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, Scheme("awq", group_size=64)),
        ({"quant_method": "fp8", "weight_block_size": [64, 32]}, Scheme("fp8", block=(64, 32))),
        ({"quant_method": "fbgemm_fp8"}, Scheme("fbgemm_fp8")),
        (COMPRESSED, Scheme("compressed-tensors")),
        (
            COMPRESSED | {"config_groups": {"g": {"weights": {"block_structure": [8, 16]}}}},
            Scheme("compressed-tensors", block=(8, 16)),
        ),
        (
            COMPRESSED | groups_of("symmetric", False, False),
            Scheme("compressed-tensors", zero_points=True),
        ),
        (COMPRESSED | groups_of("symmetric", False, True), Scheme("compressed-tensors")),
        (COMPRESSED | groups_of("type", "int"), Scheme("compressed-tensors")),
        (
            COMPRESSED | groups_of("group_size", 64, -1, 32, None),
            Scheme("compressed-tensors", group_sizes=(64, 32)),
        ),
    ],
)
def test_what_config_json_says(
    tmp_path: Path, config: dict[str, Any] | None, scheme: Scheme
) -> None:
    assert read(tmp_path, quantization_config=config) == scheme


def test_the_field_of_earlier_versions(tmp_path: Path) -> None:
    assert read(tmp_path, compression_config={"format": "int-quantized"}).method == (
        "compressed-tensors"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bits": 4}, r"quantization_config\.quant_method '' is not supported"),
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes' is not supported .*gptq, awq, compres"),
        ({"quant_method": "mxfp4"}, "'mxfp4' is not supported .*; serve the bfloat16.* --quantize"),
        (GPTQ | {"bits": 3}, r"bits 3 is not supported \(supported: 4, 8\)"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not supported"),
        (GPTQ | {"dynamic": {"-:.*q_proj": {}}}, "dynamic with settings of single modules is not"),
        ({"quant_method": "awq", "bits": 8}, "bits 8 is not supported"),
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv' is not supported"),
        ({"quant_method": "awq", "version": "Marlin"}, "version 'marlin' is not supported"),
        (COMPRESSED | {"format": "nvfp4-pack-quantized"}, "format 'nvfp4-pack-quantized' is not"),
        (COMPRESSED | {"config_groups": {"g": {"format": "marlin-24"}}}, "g.format 'marlin-24'"),
        (COMPRESSED | {"transform_config": {"R1": {}}}, "transform_config as it is set is not"),
        (COMPRESSED | {"sparsity_config": {"format": "sparse-24"}}, "sparsity_config as it is set"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "must be two whole numbers"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(StartupError, match=message) as caught:
        read(tmp_path, quantization_config=config)
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "quantize", "target"),
    [
        ("", "auto", ""),
        ("", "int4", "int4"),
        ("gptq", "auto", ""),
        ("gptq", "gptq", ""),
        ("fp8", "fp8", "fp8"),
        ("fbgemm_fp8", "fp8", "fp8"),
        ("fp8", "int8", "int8"),
    ],
)
def test_the_flag_beside_the_checkpoint(method: str, quantize: str, target: str) -> None:
    assert Scheme(method).with_target(quantize) == Scheme(method, target)


@pytest.mark.parametrize(
    ("method", "quantize", "message"),
    [
        ("", "awq", "--quantize awq: the checkpoint is not quantised; leave the flag out"),
        ("gptq", "awq", "--quantize awq: the checkpoint is quantised with gptq; leave"),
        ("gptq", "int8", "is quantised already, with gptq; leave the flag out"),
    ],
)
def test_a_flag_that_does_not_go_with_it(method: str, quantize: str, message: str) -> None:
    with pytest.raises(StartupError, match=message):
        Scheme(method).with_target(quantize)

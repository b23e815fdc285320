"""Scheme: how the linear layers of a checkpoint are quantised, as its config.json says, and as what
they shall be computed. Pure.

Which of its modules are quantised is told by their tensors (readers.py), so that lists of
exceptions are not read here. What cannot be read is refused by name.
"""

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from multilora.errors import StartupError
from multilora.json_fields import JsonFields

TARGETS = ("fp8", "int8", "int4")  # to which weights of 16 or 32 bits are quantised at start
_FIELDS = ("quantization_config", "compression_config")
_FP8 = ("fp8", "fbgemm_fp8")
_METHODS = ("gptq", "awq", "compressed-tensors", *_FP8)
_FORMATS = (
    "pack-quantized",
    "float-quantized",
    "int-quantized",
    "naive-quantized",
    "mixed-precision",  # groups have formats of their own
    "dense",
)
_BLOCK = (128, 128)
_OTHERWISE = (
    "serve the bfloat16, float16 or float32 checkpoint, with --quantize int8 or int4 where memory "
    "is short"
)


@dataclass(frozen=True)
class Scheme:
    """`method` is the checkpoint's, "" where nothing is quantised; `target` one of TARGETS, or ""
    where weights are computed as the checkpoint has them."""

    method: str = ""
    target: str = ""
    bits: int = 4  # gptq
    group_size: int = 0  # awq, gptq: columns that share a scale; 0: all of them
    first_zero: int = 0  # gptq: the zero point that is written as 0
    zero_points: bool = False  # compressed-tensors: none may be missing
    group_sizes: tuple[int, ...] = ()  # compressed-tensors: in some modules or others
    block: tuple[int, int] = _BLOCK  # rows and columns that share a scale, where these are a grid

    def with_target(self, quantize: str) -> "Scheme":
        """As the setting `quantize` says; StartupError where that does not go with the checkpoint.

        "auto" is the checkpoint's own form, and so is its name. FP8 is a target too: of blocks that
        no product takes.
        """
        own = "fp8" if self.method in _FP8 else self.method
        if quantize == "auto" or (quantize == own and own != "fp8"):
            return self
        if quantize not in TARGETS:
            what = f"is quantised with {own}" if own else "is not quantised"
            raise StartupError(
                f"--quantize {quantize}: the checkpoint {what}; leave the flag out, which takes a "
                f"checkpoint as it is, or choose one that is quantised with {quantize}"
            )
        if own not in ("", "fp8"):
            raise StartupError(
                f"--quantize {quantize}: the checkpoint is quantised already, with {own}; leave "
                "the flag out, or choose one that is not quantised"
            )
        return dataclasses.replace(self, target=quantize)


def read_scheme(folder: Path, more: Collection[str] = ()) -> Scheme:
    """Of the checkpoint in `folder`; StartupError names what cannot be read. `more`: methods that
    the caller takes beside those that have readers here."""
    config = JsonFields.read(folder / "config.json")
    field = next((name for name in _FIELDS if name in config), None)
    if field is None:
        return Scheme()
    quantised = config.fields(field)
    method = quantised.text("quant_method", "compressed-tensors" if field == _FIELDS[1] else "")
    if method in more:
        return Scheme(method)
    if method not in _METHODS:
        known = ", ".join((*_METHODS, *more))
        raise _refusal(quantised, "quant_method", repr(method), known)
    if method == "gptq":
        return _gptq(quantised)
    if method == "awq":
        return _awq(quantised)
    if method == "compressed-tensors":
        return _compressed(quantised)
    return Scheme(method, block=_block(quantised, "weight_block_size"))


def _gptq(config: JsonFields) -> Scheme:
    bits = config.integer("bits")
    form = config.text("checkpoint_format", config.text("format", "gptq"))
    if bits not in (4, 8):
        raise _refusal(config, "bits", str(bits), "4, 8")
    if form not in ("gptq", "gptq_v2"):
        raise _refusal(config, "checkpoint_format", repr(form), "gptq, gptq_v2")
    if config.data.get("dynamic"):
        raise _refusal(config, "dynamic", "with settings of single modules", "one setting for all")
    first_zero = 1 if form == "gptq" else 0
    return Scheme("gptq", "", bits, _group_size(config, "group_size"), first_zero)


def _awq(config: JsonFields) -> Scheme:
    bits = config.integer("bits", config.integer("w_bit", 4))
    if bits != 4:
        raise _refusal(config, "bits", str(bits), "4")
    form = config.text("version", config.text("format", "gemm")).lower()
    if form != "gemm":
        raise _refusal(config, "version", repr(form), "gemm")
    group = "group_size" if "group_size" in config else "q_group_size"
    return Scheme("awq", group_size=_group_size(config, group))


def _group_size(config: JsonFields, name: str) -> int:
    """-1 in the file are all columns."""
    return 0 if config.data.get(name) == -1 else config.integer(name, 128)


def _compressed(config: JsonFields) -> Scheme:
    """Bits, and which modules have groups, are seen in the tensors' shapes."""
    groups = list(_groups(config))
    for each in (config, *groups):
        form = each.text("format", "dense")
        if form not in _FORMATS:
            raise _refusal(each, "format", repr(form), ", ".join(_FORMATS))
    for name in ("sparsity_config", "transform_config"):
        if set(config.fields(name).data) - {"format"} or (
            config.fields(name).text("format", "dense") != "dense"
        ):
            raise _refusal(config, name, "as it is set", "no such field")
    blocks = [fields for fields in (each.fields("weights") for each in groups) if fields.data]
    sizes = [each.data.get("group_size") for each in blocks]
    return Scheme(
        "compressed-tensors",
        group_sizes=tuple(size for size in sizes if isinstance(size, int) and size > 0),
        zero_points=bool(blocks) and all(each.data.get("symmetric") is False for each in blocks),
        block=next(map(_block_structure, blocks), _BLOCK),
    )


def _groups(config: JsonFields) -> Iterator[JsonFields]:
    groups = config.fields("config_groups")
    for name in groups.data:
        yield groups.fields(name)


def _block_structure(weights: JsonFields) -> tuple[int, int]:
    return _block(weights, "block_structure")


def _block(config: JsonFields, name: str) -> tuple[int, int]:
    value = config.data.get(name)
    if value is None:
        return _BLOCK
    if isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value):
        return value[0], value[1]
    raise config.error(name, f"must be two whole numbers; got {value!r}")


def _refusal(config: JsonFields, name: str, value: str, known: str) -> StartupError:
    return config.error(name, f"{value} is not supported (supported: {known}); {_OTHERWISE}")

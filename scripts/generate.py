"""Write what follows from multilora_api: the tensors in the config.pbtxt files, the client's types.

    python scripts/generate.py            after a change of multilora_api

A test compares the files with what this would write.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from multilora_api.admin import KEYS
from multilora_api.sampling import PARAMETERS
from multilora_api.tensors import (
    ADMIN_INPUTS,
    ADMIN_MODEL,
    ADMIN_OUTPUT,
    ENGINE_INPUTS,
    ENGINE_MODEL,
    ENGINE_OUTPUTS,
    ENSEMBLE_INPUTS,
    OUTPUTS,
    TEXT_MODEL,
    VLLM_INPUTS,
    VLLM_MODEL,
    VLLM_OUTPUTS,
    VLLM_TEXT,
    Tensor,
)

ROOT = Path(__file__).resolve().parents[1]
_MODELS = ROOT / "model_repository"
_STEP = f'      model_name: "{ENGINE_MODEL}"\n      model_version: -1\n'
_TYPES = {
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "strings": "Sequence[str]",
    "grammar": "Mapping[str, Any] | str",
}
_SAMPLING = '''"""The keyword arguments of a generation. scripts/generate.py writes this file."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class Sampling(TypedDict, total=False):
    """How to pick tokens. Without a value the server's default counts: {max_tokens} tokens, greedy.

    `grammar` is {{"type": "json", "value": SCHEMA}} and the like, or the JSON text of one.
    `adapter_timeout` is how many seconds to wait for an adapter that the server has to load first,
    `adapter_token` opens a private Hub repository to load the adapter from.
    """

{fields}
    adapter_timeout: float
    adapter_token: str
'''


def generated() -> dict[Path, str]:
    """File → the text that it should have."""
    models = TEXT_MODEL, VLLM_MODEL, ENGINE_MODEL, ADMIN_MODEL
    configs = {name: (_MODELS / name / "config.pbtxt") for name in models}
    ensemble, vllm, engine, admin = (path.read_text(encoding="utf-8") for path in configs.values())
    text_maps = {"input_ids": "input_ids"} | {
        tensor.name: tensor.name for tensor in ENSEMBLE_INPUTS if tensor in ENGINE_INPUTS
    }
    vllm_maps = {tensor.name: tensor.name for tensor in VLLM_INPUTS}
    vllm_maps = {VLLM_TEXT.name: vllm_maps.pop("text_input"), **vllm_maps}
    admin_maps = {"action": "action"} | {key.tensor or name: name for name, key in KEYS.items()}
    same = {tensor.name: tensor.name for tensor in OUTPUTS}
    return {
        configs[TEXT_MODEL]: _with_step(
            _with_tensors(ensemble, ENSEMBLE_INPUTS, OUTPUTS), text_maps, same
        ),
        configs[VLLM_MODEL]: _with_step(
            _with_tensors(vllm, VLLM_INPUTS, VLLM_OUTPUTS),
            vllm_maps,
            {tensor.name: tensor.name for tensor in VLLM_OUTPUTS},
        ),
        configs[ENGINE_MODEL]: _with_tensors(engine, ENGINE_INPUTS, ENGINE_OUTPUTS, backend=True),
        configs[ADMIN_MODEL]: _with_step(
            _with_tensors(admin, ADMIN_INPUTS, (ADMIN_OUTPUT,)),
            admin_maps,
            {"text_output": ADMIN_OUTPUT.name},
        ),
        ROOT / "client/multilora_client/sampling.py": _sampling_types(),
    }


def _with_tensors(
    config: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], backend: bool = False
) -> str:
    """A config.pbtxt with these blocks. Every input is optional, because an ensemble that lacks a
    required one runs no step and says nothing; the models say what is missing. The dynamic batcher
    of a `backend` takes inputs of any length."""
    lines = [_entry(tensor, optional=True, ragged=backend) for tensor in inputs]
    config = _with_block(config, "input", lines)
    return _with_block(config, "output", [_entry(tensor) for tensor in outputs])


def _with_block(config: str, name: str, lines: Iterable[str]) -> str:
    block = f"{name} [\n" + ",\n".join(lines) + "\n]"
    return re.sub(rf"^{name} \[\n.*?^\]", lambda _: block, config, flags=re.DOTALL | re.MULTILINE)


def _entry(tensor: Tensor, optional: bool = False, ragged: bool = False) -> str:
    kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    dims = "-1" if tensor.many else "1"
    extra = " allow_ragged_batch: true" if ragged and tensor.many else ""
    extra += " optional: true" if optional else ""
    return f'  {{ name: "{tensor.name}" data_type: TYPE_{kind} dims: [ {dims} ]{extra} }}'


def _with_step(config: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    """An ensemble's config.pbtxt with these maps in its step multilora_llm: tensor of the step →
    tensor of the ensemble."""
    before, _, after = config.partition(_STEP)
    end = after[after.index("\n    }") :]
    lines = [*_map_lines("input_map", inputs), *_map_lines("output_map", outputs)]
    return before + _STEP + "\n".join(lines) + end


def _map_lines(kind: str, names: Mapping[str, str]) -> Iterable[str]:
    for key, value in names.items():
        yield f'      {kind} {{ key: "{key}" value: "{value}" }}'


def _sampling_types() -> str:
    typed = [parameter for parameter in PARAMETERS.values() if parameter.tensor]
    lines = [f"    {parameter.tensor}: {_TYPES[parameter.kind]}" for parameter in typed]
    default = PARAMETERS["max_tokens"].default
    return _SAMPLING.format(max_tokens=default, fields="\n".join(lines))


def main() -> None:
    for path, text in generated().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

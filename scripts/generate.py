"""Write what follows from multilora_api: the tensors in the config.pbtxt files, the client's types.

    python scripts/generate.py            after a change of multilora_api

A test compares the files with what this would write.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from multilora_api.admin import ADMIN_INPUTS
from multilora_api.sampling import PARAMETERS
from multilora_api.tensors import (
    ADMIN_MODEL,
    ENGINE_INPUTS,
    ENGINE_MODEL,
    ENSEMBLE_INPUTS,
    OUTPUTS,
    TEXT_MODEL,
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
    models = TEXT_MODEL, ENGINE_MODEL, ADMIN_MODEL
    configs = {name: (_MODELS / name / "config.pbtxt") for name in models}
    ensemble, engine, admin = (path.read_text(encoding="utf-8") for path in configs.values())
    return {
        configs[TEXT_MODEL]: _with_step(_with_tensors(ensemble, ENSEMBLE_INPUTS, OUTPUTS)),
        configs[ENGINE_MODEL]: _with_tensors(engine, ENGINE_INPUTS, OUTPUTS, ragged=True),
        configs[ADMIN_MODEL]: _with_tensors(admin, ADMIN_INPUTS, (Tensor("result", "BYTES"),)),
        ROOT / "client/multilora_client/sampling.py": _sampling_types(),
    }


def _with_tensors(
    config: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], ragged: bool = False
) -> str:
    """A config.pbtxt with these blocks; `ragged`: inputs of any length, for a dynamic batcher."""
    lines = [_entry(tensor, optional=tensor != inputs[0], ragged=ragged) for tensor in inputs]
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


def _with_step(config: str) -> str:
    """The ensemble's step multilora_llm takes all that the ensemble does, and the token ids."""
    names = ["input_ids", *(t.name for t in ENGINE_INPUTS if t in ENSEMBLE_INPUTS)]
    maps = {"input_map": names, "output_map": [tensor.name for tensor in OUTPUTS]}
    before, _, after = config.partition(_STEP)
    end = after[after.index("\n    }") :]
    return before + _STEP + "\n".join(_map_lines(maps)) + end


def _map_lines(maps: Mapping[str, Sequence[str]]) -> Iterable[str]:
    for kind, names in maps.items():
        for name in names:
            yield f'      {kind} {{ key: "{name}" value: "{name}" }}'


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

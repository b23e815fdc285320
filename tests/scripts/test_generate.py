"""What follows from multilora_api stands in the files that need it."""

import re
from pathlib import Path

import pytest

import generate
from multilora_api.sampling import PARAMETERS
from multilora_api.tensors import ADMIN_INPUTS, ENGINE_INPUTS, Tensor


@pytest.mark.parametrize("path", generate.generated(), ids=lambda path: path.parent.name)
def test_a_file_is_what_the_table_says(path: Path) -> None:
    assert path.read_text() == generate.generated()[path], "run python scripts/generate.py"


def test_an_input_of_the_table_reaches_the_engine_and_the_ensemble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new = Tensor("brand_new", "FP32")
    monkeypatch.setattr(generate, "ENGINE_INPUTS", (*ENGINE_INPUTS, new))
    monkeypatch.setattr(generate, "ENSEMBLE_INPUTS", (*generate.ENSEMBLE_INPUTS, new))
    texts = {path.parent.name: text for path, text in generate.generated().items()}
    entry = '{ name: "brand_new" data_type: TYPE_FP32 dims: [ 1 ] optional: true }'
    assert entry in texts["multilora"] and entry in texts["multilora_llm"]
    assert 'input_map { key: "brand_new" value: "brand_new" }' in texts["multilora"]
    assert "brand_new" not in texts["adapters"]


def test_every_input_is_optional_so_that_a_model_says_what_is_missing() -> None:
    for path, text in generate.generated().items():
        if path.suffix == ".pbtxt":
            block = re.findall(r"^input \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)[0]
            assert all("optional: true" in line for line in block.splitlines())


def test_the_ensemble_adapters_hands_on_every_input() -> None:
    texts = {path.parent.name: text for path, text in generate.generated().items()}
    maps = dict(re.findall(r'input_map \{ key: "(\w+)" value: "(\w+)" \}', texts["adapters"]))
    assert sorted(maps.values()) == sorted(tensor.name for tensor in ADMIN_INPUTS)
    assert set(maps) <= {tensor.name for tensor in ENGINE_INPUTS}
    assert maps["adapter_timeout"] == "timeout"


def test_every_typed_parameter_is_an_argument_of_the_client() -> None:
    text = next(text for path, text in generate.generated().items() if path.suffix == ".py")
    typed = [parameter.tensor for parameter in PARAMETERS.values() if parameter.tensor]
    assert re.findall(r"^    (\w+):", text, re.MULTILINE)[: len(typed)] == typed

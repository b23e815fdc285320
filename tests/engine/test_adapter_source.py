"""The LORA_ADAPTERS grammar and folders of adapters."""

from pathlib import Path

import pytest

from multilora.adapter_source import AdapterSource, parse_lora_adapters, sources_in
from multilora.errors import StartupError


def test_every_form_of_the_grammar():
    text = "org/a, org/b@v2,sql=/models/sql , de=./de, fr=org/fr@main,"
    assert parse_lora_adapters(text) == [
        AdapterSource("org/a", "org/a"),
        AdapterSource("org/b", "org/b", "v2"),
        AdapterSource("sql", "/models/sql"),
        AdapterSource("de", "./de"),
        AdapterSource("fr", "org/fr", "main"),
    ]
    assert parse_lora_adapters("") == []


@pytest.mark.parametrize(
    "text", ["a=b=c", "a@b@c", "=x", "@v", "a=", "x=../..//@", "sql=bad//id", "na me=org/x y"]
)
def test_items_outside_the_grammar(text: str):
    with pytest.raises(StartupError, match=r"LoRA adapter format|neither a Hub id"):
        parse_lora_adapters(text)


def test_a_name_twice_and_a_nameless_folder():
    with pytest.raises(StartupError, match="'a' twice"):
        parse_lora_adapters("a=/x,a=/y")
    with pytest.raises(StartupError, match="needs a name: write name=/x"):
        parse_lora_adapters("/x")


def test_sources_in_a_folder(tmp_path: Path):
    for name in ("b", "a", "not-an-adapter"):
        (tmp_path / name).mkdir()
    for name in ("b", "a"):
        (tmp_path / name / "adapter_config.json").write_text("{}")
    sources = sources_in(tmp_path)
    assert [source.adapter_id for source in sources] == ["a", "b"]
    assert all(source.is_folder for source in sources)

"""The LORA_ADAPTERS grammar, and which of its names are folders."""

from pathlib import Path

import pytest

from multilora.adapters.naming.flag import (
    localise,
    parse_lora_adapters,
    registered,
    sources_in,
)
from multilora.adapters.naming.folders import AdapterFolders
from multilora.adapters.naming.source import AdapterSource
from multilora.errors import StartupError
from multilora_api.admin import Origin


def test_every_form_of_the_grammar():
    text = (
        "org/a, org/b@v2,sql=/models/sql , de=./de, fr=org/fr@main,team/eu/sql, équipe é,"
        " es = s3://bucket/run=3/es,t/it=gs://user@b/it:1,https://host/x"
    )
    assert parse_lora_adapters(text) == [
        AdapterSource("org/a", "org/a"),
        AdapterSource("org/b", "org/b", "v2"),
        AdapterSource("sql", "/models/sql"),
        AdapterSource("de", "./de"),
        AdapterSource("fr", "org/fr", "main"),
        AdapterSource("team/eu/sql", "team/eu/sql"),
        AdapterSource("équipe é", "équipe é"),
        AdapterSource("es", "s3://bucket/run=3/es"),
        AdapterSource("t/it", "gs://user@b/it:1"),
        AdapterSource("https://host/x", "https://host/x"),
    ]
    assert parse_lora_adapters("") == []


@pytest.mark.parametrize(
    "text", ["a=b=c", "a@b@c", "=x", "@v", "a=", "x=../..//@", "sql=bad//id", "na me=org/x y"]
)
def test_items_outside_the_grammar(text: str):
    with pytest.raises(StartupError, match=r"LoRA adapter format|neither a Hub id"):
        parse_lora_adapters(text)


@pytest.mark.parametrize("name", ["../x", "a/../b", "a//b", "a\tb", "a\\b", "x" * 257])
def test_names_that_no_request_could_give(name: str):
    with pytest.raises(StartupError, match=r"LORA_ADAPTERS item .*name"):
        parse_lora_adapters(f"{name}=/models/x")


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


def test_names_of_lora_adapters_may_be_folders(tmp_path: Path) -> None:
    root, demo = tmp_path / "adapters", tmp_path / "demo"
    for folder in (root / "sql", root / "org/name", demo / "sql", demo / "upper", demo / "v@1"):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
    sources = parse_lora_adapters("sql,up=upper,org/name,org/other@v1,gpt2,x=/x,y=s3://y,v@1")
    found = localise(sources, AdapterFolders(root), AdapterFolders(demo))
    assert [(source.adapter_id, source.location, source.revision) for source in found] == [
        ("sql", str(root / "sql"), ""),
        ("up", str(demo / "upper"), ""),
        ("org/name", str(root / "org/name"), ""),
        ("org/other", "org/other", "v1"),
        ("gpt2", "gpt2", ""),
        ("x", "/x", ""),
        ("y", "s3://y", ""),
        ("v", str(demo / "v@1"), ""),
    ]
    assert {source.origin for source in found} == {Origin.REGISTERED}
    with pytest.raises(StartupError, match="'team/eu/x' is neither a Hub id"):
        localise(parse_lora_adapters("team/eu/x"), AdapterFolders(root))
    (root / "out").symlink_to(demo)
    with pytest.raises(StartupError, match="LORA_ADAPTERS: adapter 'out/sql': a symlink leads out"):
        localise(parse_lora_adapters("out/sql"), AdapterFolders(root))


def test_the_demo_is_for_those_who_name_nothing(tmp_path: Path):
    for name in ("demo/one", "demo/two", "own/one"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "adapter_config.json").touch()
    demo, own = tmp_path / "demo", AdapterFolders(tmp_path / "own")
    assert [source.adapter_id for source in registered("", own, demo)] == ["one", "two"]
    assert registered("", own, None) == []
    (two,) = registered("two", own, demo)
    assert two.location == str(demo / "two")
    (one,) = registered("one", own, demo)
    assert one.location == str(tmp_path / "own/one")

"""The LORA_ADAPTERS grammar, the names of adapters, and the demo's folders."""

from pathlib import Path

import pytest

from multilora.adapters.naming.names import check_name, shown, split_revision
from multilora.adapters.naming.source import AdapterSource, Origin, parse_lora_adapters, sources_in
from multilora.errors import ErrorCode, RequestError, StartupError


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
    ("location", "kind"),
    [
        ("/a", "folder"), ("./a", "folder"), ("../a", "folder"), ("~/a", "folder"),
        ("s3://b/a", "url"), ("abfs+x.y://b", "url"), ("hf://org/name", "url"),
        ("org/a", "id"), ("a", "id"), ("s3:/b", "id"), ("3s://b", "id"),
    ],
)  # fmt: skip
def test_a_location_is_one_of_three_kinds(location: str, kind: str):
    source = AdapterSource("x", location)
    assert source.origin is Origin.REGISTERED
    assert (source.is_folder, source.is_url) == (kind == "folder", kind == "url")


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


@pytest.mark.parametrize(
    "name",
    [
        "sql", "team/sql", "org/name@v1.2", "org/name@refs/pr/1", "s3://bucket/a/b", "日本語/ ä b",
        "a...b", "..a", "-x", "a:b", "x" * 256, "s3://user@bucket/a%20b", "👩‍🔬",
    ],
)  # fmt: skip
def test_names_a_request_may_give(name: str):
    check_name(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *[(name, "is a path of the server") for name in ("/etc", "./a", "../a", "~root/a", "~")],
        *[
            (name, "has an empty part, or one that is")
            for name in (
                "", "a/", "a//b", "a/..", "a/../b", "a/./b", "..", ".", "org/a@", "org/a@..",
                "org/a@../../x", "org/a@v/../x", "s3://b/../c", "s3://b//c", "s3:///c", "s3://b/",
                "s3://b/%2e%2E/c", "s3://b/a%2F..%2fc", "file:///etc/x",
            )
        ],
        *[
            (name, "backslash or a control character")
            for name in ("a\0b", "a\nb", "a\x1b[2J", "a\x85", "a\\b", "\ud800", "a\u2028b",
                         "s3://b/%00", "s3://b/..%5c")
        ],
        ("simplecache::s3://b/c", "chained URLs"),
        ("zip://x::s3://b/c", "chained URLs"),
        ("s3://b/x%3A%3Afile://c", "chained URLs"),
        ("x" * 257, "has 257 characters, but may have 256"),
        ("x" * 10**7, "has 10000000 characters"),
    ],
)  # fmt: skip
def test_names_that_are_refused_before_anything_opens_them(name: str, reason: str):
    with pytest.raises(RequestError) as caught:
        check_name(name)
    assert caught.value.code is ErrorCode.INVALID_ARG
    assert reason in caught.value.message and "adapter_id" in caught.value.message
    assert len(caught.value.message) < 300 and caught.value.message.isprintable()


def test_text_of_requests_is_shown_in_part():
    assert shown("it's\n") == '"it\'s\\n"'
    assert shown("x" * 100) == repr("x" * 100)
    assert shown("x" * 10**7) == repr("x" * 100 + "…")


def test_revisions():
    assert split_revision("org/a@v1") == ("org/a", "v1")
    assert split_revision("org/a") == ("org/a", "")
    assert split_revision("s3://me@bucket/a") == ("s3://me@bucket/a", "")


def test_sources_in_a_folder(tmp_path: Path):
    for name in ("b", "a", "not-an-adapter"):
        (tmp_path / name).mkdir()
    for name in ("b", "a"):
        (tmp_path / name / "adapter_config.json").write_text("{}")
    sources = sources_in(tmp_path)
    assert [source.adapter_id for source in sources] == ["a", "b"]
    assert all(source.is_folder for source in sources)

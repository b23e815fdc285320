"""The kinds of locations, and errors that name their adapter."""

import pytest

from multilora.adapters.naming.source import AdapterSource, about_adapter
from multilora.errors import ErrorCode, RequestError
from multilora_api.admin import Origin


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


def test_an_error_about_an_adapter_names_it_and_keeps_its_code():
    with (
        pytest.raises(RequestError, match=r"^adapter \"it's\": no such file$") as caught,
        about_adapter("it's"),
    ):
        raise RequestError(ErrorCode.NOT_FOUND, "no such file")
    assert caught.value.code is ErrorCode.NOT_FOUND

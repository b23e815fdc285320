"""JSON objects from outside: of requests and adapters, and of the base model's files."""

import json
import math
from pathlib import Path
from typing import Any

from multilora.errors import StartupError, invalid, lfs_problem


def json_object(value: object, name: str, remedy: str) -> dict[str, Any]:
    """`value`, or the object of which it is the text (a string, or bytes in UTF-8).

    Raises RequestError (INVALID_ARG), whose message names the object and ends with the remedy.
    """
    if isinstance(value, str | bytes):
        try:
            if isinstance(value, bytes) and (problem := lfs_problem(value)):
                raise invalid(f"{name} {problem}")
            text = value.decode("utf-8-sig") if isinstance(value, bytes) else value
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise invalid(f"{name} is not JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise invalid(f"{name} must be a JSON object; got {type(value).__name__}; {remedy}")
    return value


class JsonFields:
    """The object `data`, found in `file`; `where` is the field that holds it ("" = the whole file).

    Fields are checked when they are taken. Every failure is a StartupError that names the file and
    the field.

    A field that is absent or null counts as not given: its default is returned, or an error raised
    when there is none.
    """

    def __init__(self, file: Path, data: dict[str, Any], where: str = "") -> None:
        self.file = file
        self.data = data
        self.where = where

    @staticmethod
    def read(file: Path) -> "JsonFields":
        """Parse `file`; StartupError when it is missing, unreadable, or holds no JSON object."""
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise StartupError(
                f"{file}: cannot be read ({error.strerror}); let the server's user read it, or "
                "download it again"
            ) from None
        except (ValueError, RecursionError) as error:
            raise StartupError(f"{file}: not valid JSON ({error}); download it again") from None
        if not isinstance(data, dict):
            raise StartupError(
                f"{file}: must hold a JSON object; got {type(data).__name__}; download it again"
            )
        return JsonFields(file, data)

    def __contains__(self, name: str) -> bool:
        return self.data.get(name) is not None

    def error(self, name: str, problem: str) -> StartupError:
        """The error that says what is wrong with field `name`."""
        field = f"{self.where}.{name}" if self.where else name
        return StartupError(f"{self.file}: {field} {problem}")

    def integer(self, name: str, default: int | None = None, minimum: int = 1) -> int:
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(name, f"must be a whole number of at least {minimum}; got {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self._value(name, default)
        try:
            number = float(value) if isinstance(value, int | float) else math.nan
        except OverflowError:  # a whole number beyond every float
            number = math.inf
        if isinstance(value, bool) or not (math.isfinite(number) and number > 0):
            raise self.error(name, f"must be a positive number; got {value!r}")
        return number

    def boolean(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false; got {value!r}")
        return value

    def text(self, name: str, default: str) -> str:
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.error(name, f"must be a string; got {value!r}")
        return value

    def fields(self, name: str) -> "JsonFields":
        """The object in field `name`; empty when not given."""
        value = self._value(name, {})
        if not isinstance(value, dict):
            raise self.error(name, f"must be an object; got {value!r}")
        return JsonFields(self.file, value, name)

    def strings(self, name: str) -> tuple[str, ...]:
        """The list of strings in field `name`; empty when not given."""
        value = self._value(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, f"must be a list of strings; got {value!r}")
        return tuple(value)

    def _value(self, name: str, default: object) -> Any:
        value = self.data.get(name)
        if value is not None:
            return value
        if default is None:
            raise self.error(name, "is missing; download the file again or add it")
        return default

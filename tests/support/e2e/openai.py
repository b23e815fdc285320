"""What tests say to the OpenAI API of a gateway."""

import urllib.error
import urllib.request
from typing import Any

from support.e2e.triton import DIRECT

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "city": {"type": "string"},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
PEOPLE = [
    "Alice is 30 years old and lives in Paris.",
    "Bob Miller, 42, from Tokyo",
    "hello world",
    "Grüße aus 東京 🍕",
]


def say(content: Any) -> Any:
    """The messages of a chat with one turn."""
    return [{"role": "user", "content": content}]


def post(url: str, body: bytes) -> tuple[int, bytes]:
    """→ (HTTP status, answer)."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with DIRECT.open(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()

"""A client of a gateway's TGI API."""

import json
from typing import Any

import requests

SECONDS = 60  # no answer may take longer


def post(url: str, path: str, body: Any, **kwargs: Any) -> requests.Response:
    return requests.post(f"{url}{path}", json=body, timeout=SECONDS, **kwargs)


def ask(url: str, path: str = "/generate", **parameters: Any) -> requests.Response:
    given = {"adapter_id": "upper", **parameters}
    return post(url, path, {"inputs": "hello world", "parameters": given})


def events(answer: requests.Response) -> list[dict[str, Any]]:
    return [json.loads(line[5:]) for line in answer.iter_lines() if line.startswith(b"data:")]

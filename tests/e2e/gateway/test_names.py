"""A gateway whose base model is called as one of the adapters, before a real server."""

from typing import Any

import requests

from launcher.triton.server import TritonServer
from support.e2e.gateway import ADMIN_KEY, running_gateway
from support.e2e.tgi import SECONDS, post
from support.e2e.triton import eventually

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


def completed(url: str, model: str) -> tuple[int, str]:
    """The status, and the text or the error."""
    body = {"model": model, "prompt": "hello world", "max_tokens": 30}
    answer = post(url, "/v1/completions", body)
    told = answer.json()
    text = told["choices"][0]["text"] if answer.ok else told["error"]["message"]
    return answer.status_code, text


def change(url: str, action: str, **body: Any) -> None:
    answer = requests.post(f"{url}/adapters/{action}", json=body, headers=ADMIN, timeout=SECONDS)
    assert answer.status_code == 200, answer.text


def test_the_base_never_answers_in_an_adapters_name(server: TritonServer) -> None:
    with running_gateway(server, "--served-model-name", "upper") as url:
        status, message = completed(url, "upper")
        assert status == 400 and "send 'upper:upper'" in message
        assert completed(url, "upper:upper") == (200, "HELLO WORLD")
        listed = [m["id"] for m in requests.get(f"{url}/v1/models", timeout=SECONDS).json()["data"]]
        assert len(set(listed)) == len(listed) and "upper:upper" in listed
        assert requests.get(f"{url}/v1/models/upper", timeout=SECONDS).status_code == 400
        assert requests.get(f"{url}/v1/models/upper:upper", timeout=SECONDS).ok


def test_an_adapter_that_comes_later_is_seen_within_seconds(server: TritonServer) -> None:
    with running_gateway(server, "--served-model-name", "later") as url:
        assert completed(url, "later") == (200, "hello world")
        adapters = requests.get(f"{url}/adapters", timeout=SECONDS).json()["adapters"]
        source = next(entry["source"] for entry in adapters if entry["id"] == "upper")
        change(url, "load", adapter_id="later", source=source)
        assert eventually(lambda: completed(url, "later")[0], 400) == 400
        assert completed(url, "later:later") == (200, "HELLO WORLD")
        change(url, "unload", adapter_id="later")
        assert eventually(lambda: completed(url, "later")[0], 200) == 200
        assert completed(url, "later") == (200, "hello world")

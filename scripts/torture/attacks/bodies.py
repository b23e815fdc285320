"""Bodies that no client would send, to every route of the gateway."""

import copy
import json
import random
from typing import Any

from torture.findings import Round, Unexplained
from torture.server import ADMIN_KEY
from torture.speak import call

_SAY = [{"role": "user", "content": "hello"}]
_TGI = {
    "inputs": "hello", "stream": False, "parameters": {
        "adapter_id": "upper", "max_new_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 4,
        "seed": 7, "stop": ["x"], "details": True, "best_of": 1, "top_n_tokens": 2, "truncate": 100,
        "repetition_penalty": 1.1, "grammar": {"type": "regex", "value": "[a-z]*"},
    },
}  # fmt: skip
_OPENAI = {
    "model": "upper", "max_tokens": 4, "temperature": 0.5, "n": 1, "stop": ["x"], "seed": 7,
    "stream": False, "logit_bias": {"65": 1.0}, "presence_penalty": 0.1,
}  # fmt: skip
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_CHAT = {
    **_OPENAI, "messages": _SAY, "logprobs": True, "top_logprobs": 2, "tools": [_TOOL],
    "tool_choice": "auto", "response_format": {"type": "json_object"},
}  # fmt: skip
_NAMED = {"adapter_id": "fuzz/a0"}
_BODIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("/", "/generate", "/generate_stream", "/invocations", "/tokenize"), _TGI),
    "/chat_tokenize": {"messages": _SAY, "model": "upper"},
    "/detokenize": {"tokens": [72, 105], "model": "upper"},
    "/v1/completions": {**_OPENAI, "logprobs": 2, "prompt": ["hello", "world"]},
    "/v1/chat/completions": _CHAT,
    "/adapters/load": {**_NAMED, "source": "", "revision": ""},
    "/adapters/unload": {**_NAMED, "cancel": True},
    "/adapters/pin": _NAMED,
    "/adapters/unpin": _NAMED,
    "/v1/load_lora_adapter": {"lora_name": "fuzz/a0", "lora_path": "fuzz/a1"},
    "/v1/unload_lora_adapter": {"lora_name": "fuzz/a0"},
    "/nothing/here": {"a": 1},
}
_NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, -0.0, 0.5,
    "", " ", "\0", "a\nb", "\ud800", "'\"<>&{{7*7}}", "../../etc/passwd", "/etc", "😀" * 50,
    "x" * 5000, "file:///etc/passwd", "merged:", "a@b@c", "%00", [], {}, [[]], [None], ["a"] * 300,
    {"": ""}, {"type": "json", "value": {"$ref": "#"}}, {"type": "regex", "value": "(((("}, "NaN",
    {"type": "regex", "value": "(a|b){1,50}"}, [{"role": "user"}], [{"role": "tool"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
)  # fmt: skip
_NO_JSON = (
    b"", b"null", b"[]", b"\xff\xfe", b"inputs=hello&parameters=%7B%7D", b"=&" * 50_000,
    b'{"inputs": ' + b"9" * 100_000 + b"}", b'{"inputs": 1e' + b"9" * 5_000 + b"}",
    b'{"inputs": NaN, "a": Infinity}', b'{"a": 1, "a": 2}', b"x" * 1_900_000, b"x" * 2_100_000,
    *(b'{"inputs": ' + opened * n for opened in (b"[", b'{"a":') for n in (50, 900, 5000, 10**5)),
)  # fmt: skip
_TYPES = (
    "application/json; charset=utf-16", "text/plain", "", "multipart/form-data", "image/png",
    "application/x-www-form-urlencoded", "application/json\x0bx", "APPLICATION/JSON",
)  # fmt: skip


def bodies(round_: Round) -> None:
    """Wrong types, huge numbers, deep nesting, broken UTF-8, forms, and half of a right body."""
    for number in range(2):
        round_.server.place(f"fuzz/a{number}", "upper")

    def act(rng: random.Random) -> None:
        path = rng.choice(sorted(_BODIES))
        raw = _raw(_BODIES[path], rng)
        kind = "application/json" if rng.random() < 0.8 else rng.choice(_TYPES)
        method = "POST" if rng.random() < 0.95 else rng.choice(("GET", "PUT", "DELETE", "PATCH"))
        headers = {"Content-Type": kind, "Authorization": f"Bearer {ADMIN_KEY}"}
        answer = call(round_.server.gateway, method, path, raw, headers=headers)
        crossed = b"unloaded meanwhile" in answer.body  # by another of these workers
        if answer.problem or (answer.is_refusal and not crossed):
            raise Unexplained(f"{method} {path} {kind!r} {raw[:300]!r}: {answer}")

    round_.repeat(4, act)


def _raw(right: dict[str, Any], rng: random.Random) -> bytes:
    """A body that is right but for one to three places, or is no JSON."""
    wrong = json.loads(json.dumps(right))
    for _ in range(rng.randint(1, 3)):
        _spoil(wrong, rng)
    raw = json.dumps(wrong, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
    if rng.random() < 0.7:
        return raw
    cut = rng.randrange(len(raw))
    lost = raw[:cut] + rng.randbytes(rng.randrange(8)) + raw[cut + rng.randrange(4) :]
    return rng.choice((lost, raw[:cut], raw + raw, b"\xef\xbb\xbf" + raw, *_NO_JSON))


def _spoil(value: dict[str, Any], rng: random.Random) -> None:
    """Change one place of an object: below it, or its own."""
    key = rng.choice(sorted(value)) if value else "a"
    inner, pick = value.get(key), rng.random()
    nasty = copy.deepcopy(rng.choice(_NASTY))  # the next change may be inside it
    if isinstance(inner, dict) and rng.random() < 0.8:
        _spoil(inner, rng)
    elif pick < 0.7:
        value[key] = nasty
    elif pick < 0.85:
        value.pop(key, None)
    else:
        value[rng.choice(("extra", "", "__proto__", "x" * 2000, key.upper()))] = nasty

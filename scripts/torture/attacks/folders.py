"""Folders of adapters that are broken, hostile or merely odd, and chat templates that burn."""

import json
import os
import random
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

from torture.findings import Round, Unexplained, WrongAnswer
from torture.server import Example
from torture.speak import call

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_EXAMPLE = Example("upper", "hello world", "HELLO WORLD")
_ASKED_SECONDS = 30.0
_TEMPLATE_SECONDS = 30.0  # by then a template has been given up
_VALUES = (None, -1, 0, 2**70, 1e308, "x", [], {}, True, float("nan"), [[1]], "\ud800")
_NAMES = (
    "plain", "a\nb", "\udcff", "a'b\"c", "ü 漢", "x" * 200, "-rf", "%2e%2e", "a@b", "a b\t",
)  # fmt: skip
_TEXTS = (
    b"", b"null", b"[]", b"\xff\xfe", b"[" * 200_000, b'{"r": ' + b"9" * 10_000 + b"}",
    b'{"a": "' + b"x" * 20_000_000 + b'"}',
)  # fmt: skip
_ENTRIES = (  # of a header of safetensors
    {"shape": [2**40, 2**40]}, {"shape": [-1, 4]}, {"shape": []}, {"dtype": "F99"},
    {"dtype": "I64"}, {"data_offsets": [0, 2**62]}, {"data_offsets": [8, 0]},
    {"data_offsets": [-4, 4]},
)  # fmt: skip
_TEMPLATES = (  # each takes gigabytes or minutes where nothing limits it
    "{% set ns = namespace(x='ab') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}"
    "{% endfor %}{{ ns.x }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ messages }}{{ 'y' * 99999 }}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% for m in messages %}{{ m.content }}{% endfor %}" * 20000,
    "{{ '%1000000000d' % 1 }}", "{{ 'a' * 5000000000 }}", "{{ [0] * 3000000000 }}",
    "{{ (10 ** 9) ** (10 ** 7) }}", "{{ '{:>9999999999}'.format(1) }}",
    "{% include '/etc/passwd' %}",
    "{{ ('x' * 50000).replace('x', 'y' * 50000) }}", "{{ messages | tojson(indent=999999999) }}",
    "{{ range(999999999) | list }}", "{{ 'a'.__class__.__mro__[1].__subclasses__() }}",
    "{" * 100000 + "%" * 1000, "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
)  # fmt: skip


def folders(round_: Round) -> None:
    """Each is asked for by a request, and loaded: a reason, or what the adapter answers."""
    server = round_.server

    def act(rng: random.Random) -> None:
        spoil = rng.choice((_nothing, _value, _text, _cut, _header, _not_finite, _link, _missing))
        name = f"wild/{rng.getrandbits(40):x}{rng.choice(_NAMES)}"
        try:
            server.place(name, "upper", lambda folder: spoil(folder, rng))
            answers = [server.ask(_EXAMPLE, name, seconds=_ASKED_SECONDS)]
            answers.append(server.administer("load", adapter_id=name))
        finally:
            server.administer("unload", adapter_id=name, cancel=True)
            shutil.rmtree(server.adapters_dir / name, ignore_errors=True)
        for answer in answers:
            if answer.problem:
                raise Unexplained(f"{spoil.__name__} {name!r}: {answer.problem}")
            if answer.status == 200 and spoil not in (_nothing, _value):
                raise WrongAnswer(f"{spoil.__name__} {name!r} was taken: {answer}")
        answer = answers[0]
        right = answer.status == 422 or _EXAMPLE.answer.encode() in answer.body  # 422: of the name
        if spoil is _nothing and not right:
            raise WrongAnswer(f"{name!r}: {answer}")

    round_.repeat(3, act)


def templates(round_: Round) -> None:
    """A chat in such a template ends with a reason; others and the base go on meanwhile."""
    server = round_.server

    def act(rng: random.Random) -> None:
        name, source = f"burn/{rng.getrandbits(40):x}", rng.choice(_TEMPLATES)
        server.place(name, "upper", lambda to: _write(to, "chat_template.jinja", source.encode()))
        body = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        path, began = rng.choice(("/v1/chat/completions", "/chat_tokenize")), time.monotonic()
        answer = call(server.gateway, "POST", path, body, seconds=2 * _TEMPLATE_SECONDS)
        took = time.monotonic() - began
        shutil.rmtree(server.adapters_dir / name)
        if answer.problem or took > _TEMPLATE_SECONDS or b"root:" in answer.body:
            raise Unexplained(f"{took:.1f} s, {source[:100]!r}: {answer}")

    round_.repeat(3, act)


def _write(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


def _nothing(folder: Path, rng: random.Random) -> None:
    """A right adapter, below whatever name."""


def _value(folder: Path, rng: random.Random) -> None:
    config = json.loads((folder / _CONFIG).read_text())
    config[rng.choice(sorted(config))] = rng.choice(_VALUES)
    _write(folder, _CONFIG, json.dumps(config).encode())


def _text(folder: Path, rng: random.Random) -> None:
    _write(folder, _CONFIG, rng.choice(_TEXTS))


def _cut(folder: Path, rng: random.Random) -> None:
    os.truncate(folder / _WEIGHTS, rng.randrange((folder / _WEIGHTS).stat().st_size))


def _header(folder: Path, rng: random.Random) -> None:
    """It lies about its length, or a tensor's type, shape or place."""
    raw = (folder / _WEIGHTS).read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    header[rng.choice([name for name in header if name != "__metadata__"])] |= rng.choice(_ENTRIES)
    text = json.dumps(header).encode()
    lie = rng.choice((len(text), len(text), 0, 2**63, 2**64 - 1, len(text) * 2))
    _write(folder, _WEIGHTS, struct.pack("<Q", lie) + text + raw[8 + length :])


def _not_finite(folder: Path, rng: random.Random) -> None:
    _write(folder, _WEIGHTS, (folder / _WEIGHTS).read_bytes()[:-4] + b"\xff\xff\xff\xff")


def _link(folder: Path, rng: random.Random) -> None:
    """To what is no adapter's, to itself, to what never ends; or a pipe, or a folder."""
    file = folder / rng.choice((_WEIGHTS, _CONFIG))
    file.unlink()
    target = rng.choice(("/etc/passwd", "/dev/zero", "/proc/self/mem", file.name, "", "."))
    makers: dict[str, Callable[[], None]] = {"": lambda: os.mkfifo(file), ".": file.mkdir}
    makers.get(target, lambda: file.symlink_to(target))()


def _missing(folder: Path, rng: random.Random) -> None:
    (folder / rng.choice((_WEIGHTS, _CONFIG))).unlink()

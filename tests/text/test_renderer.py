"""Chat templates that would take a server's time or memory: their own chats pay, nobody else's."""

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from datetime import datetime
from typing import Any

import pytest

from multilora_text import renderer as renderer_module
from multilora_text.chat_template import ChatTemplate
from multilora_text.errors import RenderingBusy, TextError
from multilora_text.renderer import TemplateRenderer
from multilora_text.template_process import TemplateCache

MESSAGES = [{"role": "user", "content": "héllo"}]
GOOD = ChatTemplate(
    "{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}", {"eos_token": "</s>"}
)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
SLOW = (  # half a second of a processor, or as much less as a message says
    "{% for a in range(messages[0].n or 4000) %}{% for b in range(5000) %}{% endfor %}{% endfor %}"
)
TIME, MEMORY = "takes more time than", "takes more memory than"
DOUBLING = (
    "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
)
ATTACKS = {
    "string doubling": (DOUBLING, MEMORY),
    "a huge format at compile time": ("{{ '%10000000000d' % 1 }}", MEMORY),
    "a huge format": ("{{ '%10000000000d' % (messages | length) }}", MEMORY),
    "a huge width": ("{{ messages[0].content.center(10 ** 10) }}", MEMORY),
    "a giant list": ("{{ [0] * 10 ** 10 }}", MEMORY),
    "a giant list of lists": ("{% set l = (range(99999) | list) * 99999 %}", MEMORY),
    "a giant indent": ("{{ messages | tojson(indent=10 ** 10) }}", MEMORY),
    "nested ranges": (ENDLESS, TIME),
    "a power at compile time": ("{{ 10 ** (10 ** 9) }}", TIME),
    "macros that call themselves twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        TIME,
    ),
    "a billion characters": (
        "{% for a in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
        MEMORY,
    ),
    "many characters": (
        "{% for a in range(2000) %}{{ 'x' * 1000 }}{% endfor %}",
        r"makes more than 1048\d{3} ",
    ),
    "a macro that calls itself": (
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "refuses these messages .*recursion",
    ),
    "loops in loops in loops": (
        "{% for a in messages %}" * 500 + "{% endfor %}" * 500,
        "does not compile",
    ),
    "deep parentheses": ("{{ " + "(" * 100_000 + ")" * 100_000 + " }}", "does not compile"),
    "a long sum": ("{{ 1" + " + 1" * 3000 + " }}", "does not compile"),
    "an endless tag": ("{% if %}", "does not compile"),
    "a way out of the sandbox": (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "refuses these messages .*unsafe",
    ),
    "half a character": ("{{ '\\ud83d' }}", "refuses these messages .*surrogates"),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Iterator[TemplateRenderer]:
    """With one process that runs, in which GOOD is known."""
    renderer = TemplateRenderer()
    assert renderer.render(GOOD, MESSAGES).result() == "héllo</s>"
    yield renderer
    renderer.close()


@pytest.fixture
def make() -> Iterator[Callable[..., TemplateRenderer]]:
    made: list[TemplateRenderer] = []

    def make(**sizes: int) -> TemplateRenderer:
        made.append(TemplateRenderer(**sizes))
        return made[-1]

    yield make
    for renderer in made:
        renderer.close()


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {})


def process_ids(renderer: TemplateRenderer) -> set[int]:
    return {process._process.pid for process in renderer._pool._all}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize(("source", "reason"), ATTACKS.values(), ids=ATTACKS)
def test_an_attack_fails_its_own_chat_alone(
    shared: TemplateRenderer, source: str, reason: str
) -> None:
    before, longest = peak_bytes(), 0.0
    attack = shared.render(template(source), MESSAGES)
    while True:
        begin = time.monotonic()
        assert shared.render(GOOD, MESSAGES).result() == "héllo</s>"
        longest = max(longest, time.monotonic() - begin)
        if attack.done():
            break
    with pytest.raises(TextError, match=f"the chat template {reason}.*; .* without chat") as caught:
        attack.result()
    assert len(str(caught.value)) < 1500
    assert longest < 5 and peak_bytes() - before < 50 << 20


def test_what_broke_a_limit_is_not_tried_again_at_once(
    shared: TemplateRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = DOUBLING + "{# once #}"
    for _ in range(3):
        attack = shared.render(template(source), MESSAGES)
        with pytest.raises(TextError, match=MEMORY):
            attack.result()
        monkeypatch.setattr(shared._pool, "ask", None)  # nobody is asked from now on
    monkeypatch.undo()
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    asked: list[bytes] = []
    monkeypatch.setattr(shared._pool, "ask", lambda question, _: asked.append(question) or {})
    wait([shared.render(template(source), MESSAGES)])
    assert len(asked) == 1


def test_a_sound_template_is_not_blamed_for_one_clients_messages(
    shared: TemplateRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = template(f"{{% if messages[0].content == 'go' %}}{DOUBLING}{{% endif %}}fine")
    go = [{"role": "user", "content": "go"}]
    assert shared.render(own, MESSAGES).result() == "fine"
    asked, ask = [], shared._pool.ask
    monkeypatch.setattr(shared._pool, "ask", lambda *given: asked.append(given) or ask(*given))
    for _ in range(20):
        with pytest.raises(TextError, match=MEMORY):
            shared.render(own, go).result()
        assert shared.render(own, MESSAGES).result() == "fine"
    assert len(asked) == 21


def test_a_refusal_keeps_its_process(make: Callable[..., TemplateRenderer]) -> None:
    renderer = make()
    refusing = template("{{ raise_exception('roles must alternate') }}")
    assert renderer.render(GOOD, MESSAGES).result()
    before = process_ids(renderer)
    for _ in range(3):
        with pytest.raises(TextError, match=r"refuses these messages \(roles must alternate\)"):
            renderer.render(refusing, MESSAGES).result()
    assert process_ids(renderer) == before and len(before) == 1


def test_new_templates_leave_a_process_to_quick_ones(make: Callable[..., TemplateRenderer]) -> None:
    renderer = make()
    renderer.render(GOOD, MESSAGES).result()
    attacks = [renderer.render(template(f"{ENDLESS}{n}"), MESSAGES) for n in range(3)]
    for _ in range(100):
        assert renderer.render(GOOD, MESSAGES).result()
    assert not attacks[1].done() and not attacks[2].done()
    assert len(process_ids(renderer)) <= 2


def test_a_template_that_was_slow_once_counts_as_new(make: Callable[..., TemplateRenderer]) -> None:
    renderer = make()
    for n in (1, 4000):
        renderer.render(template(SLOW), [{"n": n}]).result()
    renderer.render(GOOD, MESSAGES).result()
    attacks = [renderer.render(template(SLOW), [{"n": 90_000 + n}]) for n in range(3)]
    for _ in range(100):
        assert renderer.render(GOOD, MESSAGES).result()
    assert not attacks[1].done() and not attacks[2].done()


def test_templates_take_turns(make: Callable[..., TemplateRenderer]) -> None:
    renderer, order = make(processes=1), list[str]()
    chats = [renderer.render(template(SLOW), MESSAGES)]
    for name in ("many",) * 20 + ("one",):
        chats.append(renderer.render(template("{# #}" + name), MESSAGES))
        chats[-1].add_done_callback(lambda done: order.append(done.result()))
    wait(chats)
    assert order[:2] == ["many", "one"] and len(order) == 21


def test_who_waits_for_too_long_may_try_again(
    make: Callable[..., TemplateRenderer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renderer_module, "_WAIT_SECONDS", 0.1)
    renderer = make(processes=1)
    first = renderer.render(template(SLOW), MESSAGES)
    while not first.running():
        time.sleep(0.01)
    with pytest.raises(RenderingBusy, match="try again later"):
        renderer.render(GOOD, MESSAGES).result()


def test_a_chat_whose_client_has_left_is_not_rendered(
    make: Callable[..., TemplateRenderer],
) -> None:
    renderer = make(processes=1)
    first = renderer.render(template(SLOW), MESSAGES)
    left = [renderer.render(template(f"{ENDLESS}{n}"), MESSAGES) for n in range(20)]
    assert all(chat.cancel() for chat in left)
    assert first.result() == ""
    begin = time.monotonic()
    assert renderer.render(GOOD, MESSAGES).result() and time.monotonic() - begin < 5


def test_a_process_that_somebody_kills_costs_no_error(
    make: Callable[..., TemplateRenderer],
) -> None:
    renderer = make()
    renderer.render(GOOD, MESSAGES).result()
    (killed,) = process_ids(renderer)
    os.kill(killed, signal.SIGKILL)
    assert renderer.render(GOOD, MESSAGES).result() == "héllo</s>"
    (other,) = process_ids(renderer)
    assert other != killed


def test_closing_ends_all(make: Callable[..., TemplateRenderer]) -> None:
    renderer = make()
    chats = [renderer.render(template(f"{ENDLESS}{n}"), MESSAGES) for n in range(3)]
    while not chats[0].running() or not process_ids(renderer):
        time.sleep(0.01)
    processes = process_ids(renderer)
    renderer.close()
    for chat in [*chats, renderer.render(GOOD, MESSAGES)]:
        with pytest.raises(RenderingBusy, match="shutting down"):
            chat.result(20)
    assert processes and not any(os.path.exists(f"/proc/{number}") for number in processes)
    assert not any(thread.is_alive() for thread in renderer._threads)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% if %}", r"^does not compile \(Expected .*\)$"),
        (DOUBLING, f"^{MEMORY} the server allows$"),
    ],
)
def test_a_template_is_tried(shared: TemplateRenderer, source: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        shared.check(template(source + "{# tried #}"))
    shared.check(template("{{ raise_exception('only with tools') }}"))
    shared.check(GOOD)


def test_the_text_is_what_jinja_makes_of_it(shared: TemplateRenderer) -> None:
    value = {"é": ["\u2028<&>'\"", 1.5, 1e300, -0.0, 10**40, None, True], "\0": {"": []}}
    variables: dict[str, Any] = {"tools": [value], "documents": None, "self_": "x"}
    own = ChatTemplate(
        "{{ bos_token }}{{ messages | tojson(indent=2) }}\n\n{%- for tool in tools %}\n"
        "  {{- tool }} {{ tool | string | length }}\r\n{% endfor %}\n{{ add_generation_prompt }}\n",
        {"bos_token": "<s>"},
    )
    names = {"messages": MESSAGES, "bos_token": "<s>", "add_generation_prompt": True, **variables}
    want = TemplateCache().compiled(own.source).render(names)
    assert shared.render(own, MESSAGES, **variables).result() == want


def test_a_template_knows_the_time(shared: TemplateRenderer) -> None:
    own = template("{{ strftime_now('%Y-%m-%d %H') }}")
    found = [f"{datetime.now():%Y-%m-%d %H}"]
    text = shared.render(own, MESSAGES).result()
    assert text in [*found, f"{datetime.now():%Y-%m-%d %H}"]


def test_long_chats_are_rendered(shared: TemplateRenderer) -> None:
    messages = [{"role": "user", "content": "é" * 4_000_000}]
    assert shared.render(GOOD, messages).result() == messages[0]["content"] + "</s>"


@pytest.mark.parametrize("depth", [*range(900, 1010, 5), 100_000])
def test_deeply_nested_values_end_no_process(shared: TemplateRenderer, depth: int) -> None:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    shared.render(GOOD, MESSAGES).result()
    before = process_ids(shared)
    try:
        assert shared.render(GOOD, MESSAGES, tools=value).result() == "héllo</s>"
    except TextError as error:
        assert "refuses these messages (maximum recursion depth" in str(error)
    assert process_ids(shared) == before


def test_templates_are_kept_up_to_a_size() -> None:
    templates = TemplateCache()
    small = templates.compiled("small")
    assert templates.compiled("small") is small
    for number in range(5):
        templates.compiled(f"{{# {number}{'x' * (1 << 20)} #}}")
    assert templates.compiled("small") is not small
    assert sum(map(len, templates._compiled)) <= 4 << 20


def test_threads_share_a_renderer(shared: TemplateRenderer) -> None:
    found: list[str] = []

    def work(number: int) -> None:
        for _ in range(25):
            found.append(shared.render(template(f"{number}"), MESSAGES).result())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(str(number) for number in range(8) for _ in range(25))

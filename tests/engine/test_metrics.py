"""What the engine counts: in all, and by adapter, bounded in number and complete in sum."""

import random
from collections import Counter, defaultdict

import pytest

from multilora import metrics as engine_metrics
from multilora.metrics import (
    METRICS,
    AdapterCounts,
    AdapterUsage,
    EngineMetrics,
    adapter_label,
)


def counts_of(limit: int, usages: dict[str, AdapterUsage] | None = None) -> AdapterCounts:
    usages = defaultdict(AdapterUsage) if usages is None else usages
    return AdapterCounts(limit, usages.__getitem__)


def engine_metrics_of(adapter_limit: int) -> EngineMetrics:
    return EngineMetrics(adapter_limit, 3, defaultdict(AdapterUsage).__getitem__)


def test_the_base_model_and_few_adapters() -> None:
    counts = counts_of(2)
    assert counts.figures() == ({}, {})
    counts.request("")
    counts.request("a")
    counts.tokens("a", 3)
    figures = counts.figures()
    assert figures == ({"_base": 1, "a": 1}, {"_base": 0, "a": 3})
    counts.tokens("a", 1)
    assert figures.tokens["a"] == 3  # a snapshot
    with pytest.raises(TypeError):
        figures.tokens["a"] = 0  # type: ignore[index]


def test_the_least_recently_used_falls_into_other() -> None:
    counts = counts_of(2)
    for adapter_id in ("a", "b"):
        counts.request(adapter_id)
    counts.tokens("a", 5)  # using it counts, not only asking for it
    counts.request("c")
    assert counts.figures() == ({"_other": 1, "a": 1, "c": 1}, {"_other": 0, "a": 5, "c": 0})
    counts.request("b")
    counts.request("")
    requests, tokens = counts.figures()
    assert requests == {"_base": 1, "_other": 2, "b": 1, "c": 1}
    assert tokens["_other"] == 5


def test_no_room_at_all() -> None:
    counts = counts_of(0)
    counts.request("a")
    counts.tokens("b", 2)
    assert counts.figures() == ({"_other": 1}, {"_other": 2})


def test_the_count_of_an_adapter_is_whole_whatever_its_label_shows() -> None:
    usages: defaultdict[str, AdapterUsage] = defaultdict(AdapterUsage)
    counts = counts_of(1, usages)
    for adapter_id in ("a", "b", "a"):
        counts.request(adapter_id)
        counts.tokens(adapter_id, 2)
    assert counts.figures() == ({"_other": 2, "a": 1}, {"_other": 4, "a": 2})
    assert (usages["a"].requests, usages["a"].tokens) == (2, 4)


def test_the_label_of_an_adapter_that_was_forgotten_goes_on() -> None:
    usages: defaultdict[str, AdapterUsage] = defaultdict(AdapterUsage)
    counts = counts_of(1, usages)
    counts.tokens("a", 5)
    del usages["a"]
    counts.tokens("a", 1)
    assert counts.figures().tokens == {"a": 6}
    assert usages["a"].tokens == 1
    counts.tokens("b", 3)
    assert counts.figures().tokens == {"_other": 6, "b": 3}


def test_what_nothing_is_known_of_is_other() -> None:
    counts = AdapterCounts(2, lambda _: None)
    counts.request("a")
    assert counts.figures() == ({"_other": 1}, {"_other": 0})


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_sums_stay_right_and_nothing_falls_while_it_has_a_label(limit: int) -> None:
    random_ = random.Random(limit)
    asked, generated = 0, 0
    usages: defaultdict[str, AdapterUsage] = defaultdict(AdapterUsage)
    counts = counts_of(limit, usages)
    before: Counter[str] = Counter()
    for _ in range(3000):
        adapter_id = random_.choice(["", *(f"a{i}" for i in range(20))])
        if random_.random() < 0.05:
            usages.pop(adapter_id, None)  # forgotten, as states are once there are many
        if random_.random() < 0.5:
            counts.request(adapter_id)
            asked += 1
        else:
            number = random_.randrange(5)
            counts.tokens(adapter_id, number)
            generated += number
        requests, tokens = counts.figures()
        assert sum(requests.values()) == asked and sum(tokens.values()) == generated
        assert len(requests.keys() - {"_base", "_other"}) <= limit
        assert all(requests.get(label, 0) >= before[label] for label in ("_base", "_other"))
        before = Counter(requests)


@pytest.mark.parametrize(
    "adapter_id", ["sql", "org/name@v1", 'say "hi"', "grüße-東京-🎉", "x" * 256]
)
def test_a_label_is_the_id(adapter_id: str) -> None:
    assert adapter_label(adapter_id) == adapter_id


def test_labels_that_cannot_be_the_id_still_differ() -> None:
    odd = ["_base", "_other", "a\0b", "a\nb", "a\ud83db", "x" * 257, "x" * 258, "\u2028"]
    labels = [adapter_label(adapter_id) for adapter_id in odd]
    assert len({*labels, *odd}) == 2 * len(odd)
    assert all(len(label) <= 256 and label.isprintable() for label in labels)
    assert labels[2].startswith("a?b~") and adapter_label("a\0b") == labels[2]
    counts = counts_of(2)
    counts.request("_base")
    assert "_base" not in counts.figures().requests


def test_engine_metrics_begin_with_every_figure_at_zero() -> None:
    metrics = engine_metrics_of(adapter_limit=4)
    assert metrics.snapshot == dict.fromkeys(METRICS, 0.0)
    figures = metrics.figures
    assert (figures.requests, figures.tokens, figures.running, figures.waiting) == ({}, {}, (), ())
    assert figures.max_lora == 3 and metrics.is_description_old


def test_engine_metrics_count_what_they_are_told() -> None:
    metrics = engine_metrics_of(adapter_limit=4)
    metrics.request("a", prompt_tokens=5)
    metrics.request("", prompt_tokens=7)
    for num_adapters, ran in [(2, True), (3, True), (1, True), (0, False)]:
        metrics.step(num_adapters, ran)
    for adapter_id in ("a", "a", ""):
        metrics.token(adapter_id)
    assert not any(metrics.snapshot.values()), "nothing is to be seen before it is published"
    metrics.publish({"multilora_kv_blocks": 9.0})
    changed = {name: value for name, value in metrics.snapshot.items() if value}
    assert changed == {
        "multilora_requests_total": 2,
        "multilora_prompt_tokens_total": 12,
        "multilora_generated_tokens_total": 3,
        "multilora_steps_total": 3,
        "multilora_max_adapters_in_batch": 3,
        "multilora_kv_blocks": 9,
    }
    metrics.describe({})
    assert metrics.figures.requests == {"_base": 1, "a": 1}
    assert metrics.figures.tokens == {"_base": 1, "a": 2}


def test_a_snapshot_does_not_change_any_more() -> None:
    metrics = engine_metrics_of(adapter_limit=4)
    metrics.step(2, True)
    metrics.publish({})
    snapshot = metrics.snapshot
    metrics.step(5, True)
    metrics.publish({"multilora_kv_blocks": 1.0})
    assert (snapshot["multilora_steps_total"], snapshot["multilora_adapters_in_batch"]) == (1, 2)
    assert metrics.snapshot["multilora_adapters_in_batch"] == 5
    assert snapshot["multilora_kv_blocks"] == 0


def test_descriptions_grow_old_and_say_who_runs_and_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(engine_metrics.time, "monotonic", lambda: now)
    metrics = engine_metrics_of(adapter_limit=4)
    metrics.describe({"a": (2, 0), "b": (1, 3), "c": (0, 1)})
    figures = metrics.figures
    assert (figures.running, figures.waiting, figures.max_lora) == (("a", "b"), ("b", "c"), 3)
    now += 0.2
    assert not metrics.is_description_old
    now += 0.1
    assert metrics.is_description_old
    metrics.describe({})
    assert metrics.figures.running == () and not metrics.is_description_old

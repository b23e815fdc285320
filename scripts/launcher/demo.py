"""Start a Triton server and stream one prompt to every demo adapter, all at the same time.

Prints each prompt and its answer as it arrives, then whether the requests really shared forward
passes: the server's own count of distinct adapters in one pass. Exit code 1 if that is below 5, or
fewer than 5 answers are right.
"""

import argparse
import json
import signal
import sys
import time
import unicodedata
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size

from launcher.process import LaunchError
from launcher.repository import REPOSITORY
from launcher.triton.server import TritonServer
from multilora_client import Generation, MultiLoRAClient, MultiLoRAError

SKILLS = REPOSITORY / "model_repository/multilora_llm/1/demo/skills.json"
DEMO_MODEL = {"MODEL_ID": "", "LORA_ADAPTERS": ""}  # overrides the environment
ENOUGH = 5  # different adapters in one forward pass, and right answers
MAX_TOKENS = 200
METRIC = "multilora_max_adapters_in_batch"
METRIC_SECONDS = 3.0  # the server publishes its figures a few times a second
FRAME_SECONDS = 0.05


@dataclass
class Lane:
    """One prompt and its answer. Filled by its own thread, shown by the main thread."""

    adapter_id: str
    prompt: str
    expected: str
    answer: str = ""
    result: Generation | None = None

    def run(self, client: MultiLoRAClient) -> None:
        stream = client.stream(self.prompt, adapter_id=self.adapter_id, max_tokens=MAX_TOKENS)
        for piece in stream:
            self.answer += piece
        self.result = stream.result

    def __str__(self) -> str:
        answer = self.answer.replace("\n", " ⏎ ")
        return f"{self.adapter_id or '(base)':9} │ {self.prompt} → {answer}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped
    lanes = read_lanes(SKILLS)
    try:
        with TritonServer(DEMO_MODEL) as server:
            server.wait_ready(progress=Progress())
            print(f"\nOne base model, {len(lanes) - 1} adapters, {len(lanes)} prompts at once:\n")
            seconds = run_all(lanes, server.grpc_address)
            together = wait_for_metric(server.metrics_url, len(lanes) - 1)
    except (LaunchError, MultiLoRAError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return summary(lanes, seconds, together)


class Progress:
    """Shows the stages of the server's start: in place on a terminal, else one line each."""

    def __init__(self) -> None:
        self._stage = ""

    def __call__(self, seconds: float, stage: str) -> None:
        if sys.stdout.isatty():
            print(f"\r\x1b[K{seconds:5.1f} s  Triton server: {stage[:60]}", end="", flush=True)
        elif stage != self._stage:
            print(f"Triton server: {stage}", flush=True)
        self._stage = stage


def read_lanes(path: Path) -> list[Lane]:
    """The first example of each adapter and of the base model."""
    skills = json.loads(path.read_text(encoding="utf-8"))
    return [
        Lane(skill["adapter_id"], example["prompt"], example["answer"])
        for skill in skills
        for example in skill["examples"][:1]
    ]


def run_all(lanes: list[Lane], url: str) -> float:
    """Run all lanes at once and show them; returns how many seconds they took."""
    live = sys.stdout.isatty()
    shown: set[int] = set()
    with MultiLoRAClient(url, timeout=120) as client, ThreadPoolExecutor(len(lanes)) as threads:
        began = time.monotonic()
        runs = [threads.submit(lane.run, client) for lane in lanes]
        if live:
            draw(lanes)
        while not all(run.done() for run in runs):
            time.sleep(FRAME_SECONDS)
            if live:
                draw(lanes, again=True)
            else:
                print_finished(lanes, shown)
        seconds = time.monotonic() - began
    for run in runs:
        run.result()  # raises what went wrong
    if live:
        sys.stdout.write(f"\x1b[{len(lanes)}A\x1b[J" + "".join(f"{lane}\n" for lane in lanes))
    else:
        print_finished(lanes, shown)
    return seconds


def print_finished(lanes: list[Lane], shown: set[int]) -> None:
    for index, lane in enumerate(lanes):
        if lane.result and index not in shown:
            shown.add(index)
            print(lane, flush=True)


def draw(lanes: list[Lane], again: bool = False) -> None:
    """One line per lane, cut to the terminal's width; `again` draws over the last ones."""
    width = get_terminal_size().columns - 1
    lines = "".join(f"\x1b[2K{cut(str(lane), width)}\n" for lane in lanes)
    sys.stdout.write((f"\x1b[{len(lanes)}A" if again else "") + lines)
    sys.stdout.flush()


def cut(text: str, width: int) -> str:
    """`text` cut to `width` columns at its end: its start says whose answer it is."""
    for index, character in enumerate(text):
        width -= 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if width < 0:
            return text[:index]
    return text


def wait_for_metric(url: str, enough: int) -> int:
    """The value of METRIC, once it is `enough` or METRIC_SECONDS have passed."""
    deadline = time.monotonic() + METRIC_SECONDS
    while (value := read_metric(url)) < enough and time.monotonic() < deadline:
        time.sleep(0.1)
    return value


def read_metric(url: str) -> int:
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    return max(
        (int(float(line.split()[-1])) for line in lines if line.startswith(METRIC)), default=0
    )


def summary(lanes: list[Lane], seconds: float, together: int) -> int:
    tokens = sum(lane.result.num_output_tokens for lane in lanes if lane.result)
    right = sum(lane.answer == lane.expected for lane in lanes)
    print(
        f"\n{tokens} tokens in {seconds:.2f} s ({tokens / seconds:.0f} tokens/s); "
        f"{right} of {len(lanes)} answers are exactly right."
    )
    print(f"Up to {together} different adapters shared one forward pass of the base model.")
    if min(together, right) < ENOUGH:
        print(f"error: at least {ENOUGH} of both were expected", file=sys.stderr)
        return 1
    return 0

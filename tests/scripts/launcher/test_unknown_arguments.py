"""Words of the command line that mean nothing here, vLLM's flags among them."""

import argparse
import re

import pytest

from launcher.flags import VLLM_FLAGS, parse_flags
from launcher.repository import REPOSITORY


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        parse_flags(words, {})
    return capsys.readouterr().err.splitlines()[-1].removeprefix("serve.py: error: ")


def is_flag(name: str) -> bool:
    try:
        parse_flags([name, "1"], {})
    except (SystemExit, argparse.ArgumentError):
        return False
    return True


def documented() -> dict[str, str]:
    """vLLM's flags in the guide that are none here → what it says of them."""
    guide = (REPOSITORY / "docs/from-tgi.md").read_text(encoding="utf-8")
    table = guide.partition("| vLLM | here |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if " | " in line]
    flags = {flag: here for theirs, here in rows for flag in re.findall(r"--[a-z-]+", theirs)}
    return {flag: here for flag, here in flags.items() if not is_flag(flag)}


def test_the_guide_and_the_launcher_agree_on_vllm(capsys: pytest.CaptureFixture[str]) -> None:
    assert documented().keys() == VLLM_FLAGS.keys()
    for flag, here in documented().items():
        said = complaint(capsys, flag)
        assert said == f"unknown argument {flag}; {flag} {VLLM_FLAGS[flag]}"
        named = re.findall(r"--[a-z-]+|not needed|not supported", here)
        assert named and all(each in said for each in named), flag


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("--max-input-lenght=7", "did you mean --max-input-length?"),
        ("--max_model_len=4096", "--max-model-len is --max-total-tokens here"),
        ("--lora-adapters a=/a b=/b", "adapters are separated by commas alone: --lora-adapters"),
        ("--lora-modules a=/a b=/b", "--lora-modules is --lora-adapters here, with commas"),
        ("org/base", "a base model is --model-id org/base; adapters are separated by commas"),
        ("--num-shards 2", "see --help"),
        ("--nothing-like-it", "see --help"),
    ],
)
def test_hints(capsys: pytest.CaptureFixture[str], words: str, hint: str) -> None:
    assert f"; {hint}" in complaint(capsys, *words.split())

"""What to say of a word of the command line that means nothing here."""

import argparse
import difflib

from launcher.vllm_flags import VLLM_FLAGS


def complaint(word: str, parser: argparse.ArgumentParser) -> str:
    """Names the flag that was meant; one that is accepted without effect never was."""
    flag = word.partition("=")[0].replace("_", "-")
    if not word.startswith("-"):
        hint = "adapters are separated by commas alone: --lora-adapters sql=/a/sql,json=/a/json"
        if flag == word:
            hint = f"a base model is --model-id {word}; {hint}"
    elif flag in VLLM_FLAGS:
        hint = f"{flag} {VLLM_FLAGS[flag]}"
    else:
        actions = [each for each in parser._actions if each.help != argparse.SUPPRESS]
        options = [option for action in actions for option in action.option_strings]
        close = difflib.get_close_matches(flag, options, n=1)
        hint = f"did you mean {close[0]}?" if close else "see --help"
    return f"unknown argument {word}; {hint}"

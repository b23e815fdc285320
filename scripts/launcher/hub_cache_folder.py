"""The folder of downloads, when the one asked for cannot be written.

Docker makes the folder of `-v $PWD/data:/data` for root, and the server runs as somebody else.
Law: standard library only; a test runs this file on its own, as a user who cannot read the rest.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def writable_hub_cache(environment: Mapping[str, str]) -> dict[str, str]:
    """What to change in `environment`: another HF_HUB_CACHE instead of an empty read-only folder.

    A read-only folder that holds something stays: the models may be in it. Warns on stderr.
    """
    asked = environment.get("HF_HUB_CACHE", "")
    if not asked or not os.path.isdir(asked) or os.access(asked, os.W_OK):
        return {}
    start = f"warning: user {os.getuid()} may not write to {asked}"
    end = f"to keep them there, `chown {os.getuid()} {asked}` or run as another user"
    if _holds_something(asked):
        print(f"{start}: only what it holds can be served, downloads fail; {end}", file=sys.stderr)
        return {}
    home = environment.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
    other = str(Path(home) / "hub")
    print(
        f"{start}: downloads go to {other}, in a container only as long as it lives; {end}",
        file=sys.stderr,
    )
    return {"HF_HUB_CACHE": other}


def _holds_something(folder: str) -> bool:
    try:
        return bool(os.listdir(folder))
    except OSError:  # not even readable
        return False

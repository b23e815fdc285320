"""Folders of two files that are of one version when they hold the same text."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multilora.adapters.files import read_settled

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write(folder: Path, version: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_text(version)


def settle() -> None:
    time.sleep(0.06)


def read(folder: Path) -> dict[str, str]:
    contents = read_settled(folder, (CONFIG, WEIGHTS))
    return {name: bytes(content.data).decode() for name, content in contents.items()}


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """As a user who is not root, whom no file mode would stop, and who may enter `folder`: pytest's
    own folders above it are private."""
    was_root = os.geteuid() == 0
    for each in (folder, *folder.parents) if was_root else ():
        if each.is_relative_to(tempfile.gettempdir()) and each != Path(tempfile.gettempdir()):
            each.chmod(0o755)
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)

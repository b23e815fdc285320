"""A folder of downloads that cannot be written, as somebody who is not root sees it."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "scripts" / "launcher" / "hub_cache_folder.py"
# Permissions mean nothing to root, so the program becomes nobody once it is imported.
CALL = """
if os.getuid() == 0:
    os.setuid(65534)
print(writable_hub_cache({'HF_HUB_CACHE': %r, 'HF_HOME': '/home/x'}))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's own, which only its user may look into."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


def asked(folder: Path) -> tuple[str, str]:
    """What it prints → (stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-I", "-"],
        input=SOURCE.read_text() + CALL % str(folder),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr


def test_an_empty_folder_that_is_roots_is_not_used(folder: Path) -> None:
    folder.chmod(0o555)
    changed, warning = asked(folder)
    assert changed == "{'HF_HUB_CACHE': '/home/x/hub'}"
    assert f"may not write to {folder}" in warning and "chown" in warning


def test_what_it_holds_is_served(folder: Path) -> None:
    (folder / "models--org--base").mkdir()
    folder.chmod(0o555)
    changed, warning = asked(folder)
    assert changed == "{}" and "only what it holds" in warning and "chown" in warning


def test_a_folder_that_can_be_written_or_made_is_used(folder: Path) -> None:
    folder.chmod(0o777)
    assert asked(folder) == ("{}", "")
    assert asked(folder / "new") == ("{}", "")

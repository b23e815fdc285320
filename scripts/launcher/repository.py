"""Where the repository of these scripts lies."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

"""Files that do to the process that decodes them what a fault in a native library could."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["ENDLESS", "ENDS", "HUNGRY", "SLEEPS", "hostile_path"]

ENDS: Final = b"ends:%d"
ENDLESS: Final = b"endless:"
SLEEPS: Final = b"sleeps:"
HUNGRY: Final = b"hungry:"


def hostile_path() -> str:
    """A PYTHONPATH with which decoders started from now on obey these files."""
    paths = [str(Path(__file__).parent / "hostile"), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(filter(None, paths))

"""Where anyformer keeps what it may fetch or compute again."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """$ANYFORMER_CACHE, else ~/.cache/anyformer."""
    return Path(os.environ.get("ANYFORMER_CACHE") or "~/.cache/anyformer").expanduser()

"""Shared fixtures: one thread, no network, the real data where it lies beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# before any import of torch or tokenizers: the machines that run this have 2 shared cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parent.parent
REAL_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token caches go to a folder of the test session, never to the user's."""
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def real_data() -> Path:
    """Folder with the real corpora; the test is skipped, visibly, where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("needs the real data folder beside the checkout (shared/data)")
    return REAL_DATA

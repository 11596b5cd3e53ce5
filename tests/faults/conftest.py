"""One server of real processes for all tests here; the seed that a failure is replayed with."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.server import Server, why_not

SEED = "FAULT_SEED"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Forks real processes that can meet faults. Skips, visibly, where there is no C compiler."""
    if reason := why_not():
        pytest.skip(reason)
    with Server(tmp_path_factory.mktemp("faults")) as running:
        yield running


@pytest.fixture
def seed() -> int:
    """Drawn anew for each run of the tests; printed with a failure, and given again with FAULT_SEED=N."""
    drawn = int(os.environ.get(SEED) or int.from_bytes(os.urandom(4), "big"))
    print(f"replay with {SEED}={drawn}")  # pytest shows it where the test fails
    return drawn


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: an fsync is counted there, and takes no time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="anyformer-faults-") as folder:
        yield Path(folder)

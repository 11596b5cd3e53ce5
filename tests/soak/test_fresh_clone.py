"""What a newcomer types, in a clone with no leftovers."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak
ROOT = Path(__file__).parent.parent.parent


def test_make_demo_in_a_fresh_clone(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    environment = {**os.environ, "ANYFORMER_CACHE": str(tmp_path / "cache")}
    environment.pop("OMP_NUM_THREADS", None)
    subprocess.run(["make", ".venv/.installed"], cwd=clone, env=environment, check=True)
    begin = time.monotonic()
    done = subprocess.run(["make", "demo"], cwd=clone, env=environment, capture_output=True, text=True)
    seconds = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    results = json.loads((clone / "runs/demo/run.json").read_text())["results"]
    assert results["val_loss"] < results["bigram_entropy"]
    assert (clone / "runs/demo/report.html").is_file()
    assert seconds < 240, f"the demo took {seconds:.0f} s"

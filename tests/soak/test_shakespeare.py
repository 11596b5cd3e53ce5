"""The loss at settings whose result is published, over three seeds (about two minutes each)."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak


def test_the_published_loss_is_reached(real_data: Path, tmp_path: Path) -> None:
    from benchmarks.shakespeare import train

    text = real_data / "tinyshakespeare" / "input.txt"
    losses = [train(text, seed, str(tmp_path)).results["val_loss"] for seed in (1, 2, 3)]
    assert statistics.mean(losses) <= 1.90, losses

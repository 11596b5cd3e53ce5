"""The whole loop costs next to nothing over a bare one."""

from __future__ import annotations

import statistics

import pytest
import torch

pytestmark = pytest.mark.soak


@pytest.mark.parametrize(("vocab_size", "steps", "goal"), [(8192, 30, 1.12), (50_257, 14, 1.3)])
def test_the_loop_is_faster_than_a_bare_one(vocab_size: int, steps: int, goal: float) -> None:
    from benchmarks.train_loop import measure

    torch.set_num_threads(1)
    result = measure(steps, vocab_size)
    ratios = [theirs / ours for ours, theirs in zip(result.ours[5:], result.theirs[5:], strict=True)]
    assert statistics.median(ratios) >= goal
    assert result.bare is not None
    pairs = zip(result.our_losses, result.bare.losses, strict=True)
    assert all(float(ours) == pytest.approx(float(bare), rel=1e-5) for ours, bare in pairs)

"""The whole loop costs next to nothing over a bare one."""

from __future__ import annotations

import statistics

import pytest
import torch

pytestmark = pytest.mark.soak


def test_the_loop_is_as_fast_as_a_bare_one() -> None:
    from benchmarks.train_loop import measure

    torch.set_num_threads(1)
    result = measure(30)
    ratios = [theirs / ours for ours, theirs in zip(result.ours[5:], result.theirs[5:], strict=True)]
    assert statistics.median(ratios) >= 0.97
    pairs = zip(result.our_losses, result.bare.losses, strict=True)
    assert all(float(ours) == pytest.approx(float(bare), rel=1e-6) for ours, bare in pairs)

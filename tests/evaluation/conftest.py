"""The small model and its call plan."""

from __future__ import annotations

import pytest
import torch

from anyformer.models.callplan import CallPlan
from tests.evaluation.known_models import CausalMean


@pytest.fixture
def model() -> CausalMean:
    torch.manual_seed(0)
    return CausalMean()


@pytest.fixture
def plan() -> CallPlan:
    return CallPlan(
        token_arg="input_ids",
        mask_arg=None,
        targets_arg=None,
        needs_targets=False,
        logits_path=(),
        vocab_size=23,
        embedding_rows=23,
        max_positions=12,
        family="decoder",
        causal=True,
        findings=(),
    )

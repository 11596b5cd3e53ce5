"""What a run derives from its settings and its data."""

from __future__ import annotations

import pytest
import torch

from anyformer.core.settings import TrainSettings
from anyformer.models.callplan import infer_call_plan
from anyformer.training.effective import EVAL_TOKENS, LEAST_EVAL_BLOCKS, derive
from tests.training.small_models import Small


@pytest.mark.parametrize(
    ("steps", "batch", "accumulate", "blocks"),
    [
        (40, 4, 1, LEAST_EVAL_BLOCKS),  # 4 steps of 4 sequences lie between two evaluations
        (400, 4, 1, 160),
        (400, 4, 2, 320),
        (40_000, 16, 1, EVAL_TOKENS // 64),
    ],
)
def test_an_evaluation_reads_no_more_than_was_trained_on_since_the_last(
    steps: int, batch: int, accumulate: int, blocks: int
) -> None:
    module = Small()
    settings = TrainSettings(max_steps=steps, batch_size=batch, accumulate_grad_batches=accumulate)
    effective, _ = derive(
        settings,
        module,
        infer_call_plan(module),
        batches_per_epoch=100_000,
        val_blocks=5_000,
        max_length=64,
        precision="32",
        device=torch.device("cpu"),
    )
    assert effective.eval_blocks == blocks

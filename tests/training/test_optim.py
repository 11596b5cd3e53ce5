"""The optimizer, its schedule, and a whole trajectory against a loop written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from small_models import Small
from torch import nn
from torch.nn import functional as F

from anyformer.training.coordinator import TrainResult
from anyformer.training.optim import suggested_learning_rate, warmup_cosine


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1 / 11),  # the first of 10 steps of warm-up: never 0, so that no step is wasted
        (4, 5 / 11),
        (9, 10 / 11),
        (10, 1.0),
        (35, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),  # an eighth of the circle
        (60, 0.1 + 0.9 / 2),
        (110, 0.1),
        (500, 0.1),
    ],
)
def test_warmup_and_cosine_at_closed_form_points(step: int, factor: float) -> None:
    assert warmup_cosine(step, warmup_steps=10, total_steps=110, min_lr_ratio=0.1) == pytest.approx(factor, rel=1e-12)


def test_without_warmup_or_end() -> None:
    assert warmup_cosine(0, warmup_steps=0, total_steps=10, min_lr_ratio=0.0) == 1.0
    assert warmup_cosine(10**6, warmup_steps=5, total_steps=None, min_lr_ratio=0.1) == 1.0


def test_suggested_learning_rate_is_kaplans() -> None:
    module = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 100), nn.Linear(100, 50, bias=False))
    # the head has as many rows as the embedding and is left out as well: 8 · 100 + 100 remain
    assert suggested_learning_rate(module, 50) == pytest.approx(0.003239 - 0.0001395 * math.log(900), rel=1e-12)
    assert suggested_learning_rate(nn.Linear(10, 1, bias=False), None) == pytest.approx(
        0.003239 - 0.0001395 * math.log(10)
    )


def test_twenty_steps_equal_a_loop_written_by_hand(fit: Callable[..., TrainResult]) -> None:
    torch.manual_seed(7)
    module, twin = Small(dropout=0.0), Small(dropout=0.0)
    twin.load_state_dict(module.state_dict())
    settings = {"warmup_steps": 5, "weight_decay": 0.2, "beta2": 0.9, "gradient_clip_val": 0.3, "min_lr_ratio": 0.2}
    result = fit(module, max_steps=20, batch_size=24, accumulate_grad_batches=2, eval_every=20, **settings)

    loader = result.trainer.datamodule  # the same batches, epoch after epoch
    matrices = [p for p in twin.parameters() if p.dim() >= 2]
    vectors = [p for p in twin.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}], lr=1e-2, betas=(0.9, 0.9)
    )
    step, epoch = 0, 0
    order = loader.train_dataloader()._batches.order
    blocks = loader.train_dataloader().dataset
    while step < 20:
        places = [order.index(epoch, i) for i in range(order.size)]
        batches = [blocks.__getitems__(places[i : i + 24]).tensors for i in range(0, order.size, 24)]
        assert len(batches) % 2  # the last step of an epoch has one batch
        for start in range(0, len(batches), 2):
            if step == 20:
                break
            for batch in batches[start : start + 2]:
                logits = twin(batch["input_ids"])
                targets = torch.cat([batch["input_ids"][:, 1:], batch["next_ids"][:, None]], 1)
                (F.cross_entropy(logits.flatten(0, 1), targets.flatten()) / 2).backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 0.3)
            ratio = (step + 1) / 6 if step < 5 else 0.2 + 0.8 * (1 + math.cos(math.pi * (step - 5) / 15)) / 2
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * ratio
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        epoch += 1
    assert epoch > 1
    assert result.results["steps"] == 20
    for name, value in result.adapter.model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=0, atol=1e-6)

"""A loss or a gradient that is no number ends the run before it does harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anyformer.core.errors import TrainingError
from anyformer.runs.checkpoints import read_weights
from anyformer.training import adapter as adapter_module
from anyformer.training.adapter import UniversalModelAdapter
from anyformer.training.coordinator import TrainResult
from tests.training.small_models import Small

Fit = Callable[..., TrainResult]


class Breaks(Small):
    """Goes wrong in its ``at``-th training step: in the loss, or only in the gradient of the head."""

    def __init__(self, at: int, where: str) -> None:
        super().__init__(dropout=0.0)
        self.at, self.where, self.steps, self.armed = at, where, 0, False

    def forward(self, tokens: Tensor) -> Tensor:
        logits = super().forward(tokens)
        if not (self.armed and self.training):
            return logits
        self.steps += 1
        if self.steps < self.at:
            return logits
        if self.where == "loss":
            return self.head(torch.full_like(self.embedding(tokens), float("nan")))
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * float("inf"))
        return logits


@pytest.fixture(autouse=True)
def _armed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UniversalModelAdapter, "on_train_start", lambda self: setattr(self.model, "armed", True))


@pytest.mark.parametrize(("where", "named"), [("loss", "head"), ("gradient", "embedding.weight")])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_run_stops_at_the_step_and_keeps_the_last_good_weights(
    fit: Fit, tmp_path: Path, where: str, named: str, accumulate: int
) -> None:
    torch.manual_seed(5)
    module = Breaks(6 * accumulate, where)
    with pytest.raises(TrainingError, match="at step 6") as caught:
        fit(module, eval_every=5, accumulate_grad_batches=accumulate)
    assert named in caught.value.detail
    assert "the weights were not updated with it" in caught.value.detail
    run = tmp_path / "runs" / "run"
    assert f"the last good checkpoint is kept: {run / 'checkpoints' / 'step-00000005'}" in caught.value.detail
    stored = read_weights(run / "checkpoints" / "step-00000005")
    assert all(torch.equal(stored[name], value) for name, value in module.state_dict().items())
    record = json.loads((run / "run.json").read_text())
    assert record["state"] == "failed"
    assert "at step 6" in record["error"]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_where_looking_costs_time_the_update_skips_itself(
    fit: Fit, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_module, "reading_is_free", lambda tensor: False)  # as on a GPU
    torch.manual_seed(5)
    module = Breaks(5, where)
    with pytest.raises(TrainingError, match="at step 5"):
        fit(module, max_steps=200, eval_every=100, log_every=10)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    assert module.steps - (where == "loss") <= 11  # found at the next row of metrics, then looked at once more


def test_a_held_out_loss_that_is_no_number_is_not_saved(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BadWhenJudged(Breaks):
        def forward(self, tokens: Tensor) -> Tensor:
            logits = super().forward(tokens)
            return logits * float("nan") if self.armed and not self.training and self.steps >= 8 else logits

    torch.manual_seed(5)
    with pytest.raises(TrainingError, match="the held-out loss is nan at step 8"):
        fit(BadWhenJudged(99, "loss"))
    assert [path.name for path in (tmp_path / "runs/run/checkpoints").iterdir()] == ["step-00000004"]

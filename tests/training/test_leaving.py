"""A run that is left at an evaluation, or after its time was up, ends like one that never was."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anyformer.core.errors import Interrupted, TrainingError
from anyformer.training import coordinator, ending, intime
from anyformer.training.coordinator import TrainResult
from anyformer.training.saving import RunCheckpoint
from anyformer.training.stopping import StopOnSignal
from tests.training.small_models import Small

Fit = Callable[..., TrainResult]


class Counting(Small):
    """Knows how many steps its run has taken."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.armed = False

    def forward(self, tokens: Tensor) -> Tensor:
        if self.armed and self.training and torch.is_grad_enabled():  # others are proofs
            self.steps += 1
        return super().forward(tokens)


class BestEarly(Counting):
    """Its held-out loss is lowest at step 8."""

    def forward(self, tokens: Tensor) -> Tensor:
        logits = super().forward(tokens)
        return logits if self.training or self.steps <= 8 else logits * 0.3


class BadThird(Counting):
    """Its third step gives NaN."""

    def forward(self, tokens: Tensor) -> Tensor:
        before = int(self.steps)
        logits = super().forward(tokens)
        return logits * torch.nan if before == 2 and self.steps == 3 else logits


@pytest.fixture(autouse=True)
def _armed_while_training(monkeypatch: pytest.MonkeyPatch) -> None:
    start = RunCheckpoint.on_train_start

    def on_train_start(self: RunCheckpoint, trainer: Any, pl_module: Any) -> None:
        start(self, trainer, pl_module)
        pl_module.model.armed = True

    monkeypatch.setattr(RunCheckpoint, "on_train_start", on_train_start)


@pytest.mark.parametrize("how", ["signal", "max_time"])
def test_the_evaluation_at_which_it_was_left_counts(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    settings: dict[str, Any] = {"max_steps": 20, "save_top_k": 1}
    unbroken = fit(BestEarly(), name="unbroken", **settings)
    with monkeypatch.context() as patch:
        if how == "signal":

            def begin(self: StopOnSignal, trainer: Any, pl_module: Any) -> None:
                if trainer.global_step == 8:
                    os.kill(os.getpid(), signal.SIGTERM)

            patch.setattr(StopOnSignal, "on_validation_start", begin, raising=False)
            with pytest.raises(Interrupted):
                fit(BestEarly(), **settings)
        else:
            patch.setattr(intime.StopInTime, "_needed", lambda self, module, following: 0 if following < 9 else 1e9)
            patch.setattr(intime.StopInTime, "measuring_seconds", lambda self: 0)
            paused = fit(BestEarly(), max_time="1h", **settings)
            assert paused.results["best_checkpoint"] == "checkpoints/step-00000008"
    resumed = fit(BestEarly(), resume=str(tmp_path / "runs" / "run"), **settings)
    assert unbroken.results["best_checkpoint"] == "checkpoints/step-00000008"
    assert resumed.results["best_checkpoint"] == unbroken.results["best_checkpoint"]
    assert resumed.results["val_loss"] == unbroken.results["val_loss"]


def test_a_signal_while_a_paused_run_is_measured_ends_it(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = ending.measure

    def measured(*given: Any, **more: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        return measure(*given, **more)

    monkeypatch.setattr(ending, "measure", measured)
    monkeypatch.setattr(intime.StopInTime, "_needed", lambda self, module, following: 0 if following < 6 else 1e9)
    with pytest.raises(Interrupted) as caught:
        fit(Counting(), max_time="1h", eval_every=100)
    assert caught.value.exit_code == 143


def test_saving_by_the_clock_leaves_rows_as_they_are_though_a_step_was_skipped(fit: Fit) -> None:
    rows = []
    for name, every in (("never", "never"), ("often", "0.0001s")):
        settings: dict[str, Any] = {"bad_steps": "skip", "max_steps": 9, "log_every": 2, "eval_every": 9}
        run = fit(BadThird(), name=name, save_every=every, **settings).run_path
        with (run / "metrics" / "metrics.csv").open() as stream:
            rows.append([(row["step"], row["train_loss"]) for row in csv.DictReader(stream) if row["train_loss"]])
    assert rows[0] == rows[1]
    assert "nan" not in [loss for _, loss in rows[0][2:]]


@pytest.mark.parametrize("how", ["signal", "error"])
def test_what_was_skipped_and_chosen_stands_in_the_manifest_however_it_ends(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def begin(self: StopOnSignal, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 4:
            if how == "error":
                raise TrainingError("the disk is gone")
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StopOnSignal, "on_train_batch_start", begin, raising=False)
    with pytest.raises(Interrupted if how == "signal" else TrainingError):
        fit(BadThird(), bad_steps="skip")
    record = json.loads((tmp_path / "runs" / "run" / "run.json").read_text())
    assert record["state"] == ("interrupted" if how == "signal" else "failed")
    findings = {one["name"]: one for one in record["findings"]}
    assert findings["skipped"]["reason"].startswith("steps 3;")
    assert "few" in findings["fused head"]["reason"]


@pytest.mark.parametrize(
    ("error", "state"), [(RuntimeError("no answer"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_backup_that_cannot_begin_ends_the_run_in_its_record_too(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, state: str
) -> None:
    def begin(*args: Any) -> None:
        raise error

    monkeypatch.setattr(coordinator, "begin_backup", begin)
    with pytest.raises((RuntimeError, Interrupted)):
        fit(backup=str(tmp_path / "copy"))
    assert json.loads((tmp_path / "runs" / "run" / "run.json").read_text())["state"] == state


def test_the_first_row_holds_the_first_step(fit: Fit) -> None:
    losses = {}
    for every in (1, 4):
        run = fit(name=f"every{every}", log_every=every, max_steps=8, eval_every=8).run_path
        with (run / "metrics" / "metrics.csv").open() as stream:
            losses[every] = {int(row["step"]): float(row["train_loss"]) for row in csv.DictReader(stream)}
    assert list(losses[4]) == [4, 8]
    assert losses[4][4] == pytest.approx(sum(losses[1][step] for step in (1, 2, 3, 4)) / 4, rel=1e-6)
    assert losses[4][8] == pytest.approx(sum(losses[1][step] for step in (5, 6, 7, 8)) / 4, rel=1e-6)

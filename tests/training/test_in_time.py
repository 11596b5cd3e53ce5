"""What a run does by the clock changes nothing of its result."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anyformer import cli
from anyformer.training import callbacks, intime, saving
from anyformer.training.coordinator import TrainResult
from anyformer.training.samples import SampleWriter
from anyformer.training.saving import RunCheckpoint
from tests.training.read_runs import untimed_rows, weights
from tests.training.small_models import Small

Fit = Callable[..., TrainResult]


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which a checkpoint was written."""
    steps: list[int] = []
    save = RunCheckpoint._save_checkpoint

    def noted(self: RunCheckpoint, trainer: Any, filepath: str) -> None:
        steps.append(trainer.global_step)
        save(self, trainer, filepath)

    monkeypatch.setattr(RunCheckpoint, "_save_checkpoint", noted)
    return steps


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.soak), 3])
def test_saving_between_evaluations_changes_nothing(fit: Fit, saved: list[int], accumulate: int) -> None:
    settings = {"max_steps": 9, "log_every": 2, "accumulate_grad_batches": accumulate}
    without = fit(name="without", save_every="never", **settings)
    assert saved == [4, 8, 9]
    saved.clear()
    often = fit(name="often", save_every="0.0001s", **settings)
    assert saved == list(range(1, 10))
    assert weights(often.run_path) == weights(without.run_path)
    assert untimed_rows(often.run_path) == untimed_rows(without.run_path)
    kept = [{path.name for path in (run.run_path / "checkpoints").iterdir()} for run in (often, without)]
    assert kept[0] == kept[1]
    assert often.results["val_loss"] == without.results["val_loss"]


class Dying(Small):
    """Ends the run without a word in the ``at``-th step, as a kill would."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.steps, self.armed = at, 0, False

    def forward(self, tokens: Tensor) -> Tensor:
        if self.armed and self.training and torch.is_grad_enabled():
            self.steps += 1
            if self.steps == self.at:
                raise BufferError("killed")
        return super().forward(tokens)


@pytest.mark.parametrize(
    "at", [14, pytest.param(17, marks=pytest.mark.soak)]
)  # right after the end of an epoch of 13 steps, and inside the next
def test_a_run_goes_on_exactly_from_a_checkpoint_between_evaluations(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    start = RunCheckpoint.on_train_start
    monkeypatch.setattr(
        RunCheckpoint, "on_train_start", lambda self, t, m: (start(self, t, m), setattr(m.model, "armed", True))
    )
    settings: dict[str, Any] = {"batch_size": 24, "max_steps": 20, "eval_every": 9, "log_every": 2}
    torch.manual_seed(5)
    unbroken = fit(Dying(0), name="unbroken", save_every="never", **settings)
    assert unbroken.trainer.num_training_batches == 13
    torch.manual_seed(5)
    with pytest.raises(BufferError):
        fit(Dying(at), save_every="0.0001s", **settings)
    run = tmp_path / "runs" / "run"
    assert (run / "checkpoints" / f"step-{at - 1:08d}").is_dir()
    result = fit(Dying(0), resume=str(run), **settings)
    assert weights(run) == weights(unbroken.run_path)
    assert untimed_rows(run) == untimed_rows(unbroken.run_path)
    assert result.results["val_loss"] == unbroken.results["val_loss"]


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (intime, callbacks, saving):
        monkeypatch.setattr(module, "time", clock)
    return clock


class Ticking(Small):
    """Each step takes ten seconds of the test's clock, an evaluation's batch three."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.armed = False

    def forward(self, tokens: Tensor) -> Tensor:
        if self.armed:
            evaluates = not self.training and tokens.shape[0] > 3  # no sampling, no proof
            self.clock.now += 10 if self.training and torch.is_grad_enabled() else 3 if evaluates else 0
        return super().forward(tokens)


@pytest.fixture
def ticking(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Ticking]:
    start = RunCheckpoint.on_train_start

    def on_train_start(self: RunCheckpoint, trainer: Any, pl_module: Any) -> None:
        start(self, trainer, pl_module)
        pl_module.model.armed = isinstance(pl_module.model, Ticking)

    monkeypatch.setattr(RunCheckpoint, "on_train_start", on_train_start)

    def make() -> Ticking:
        torch.manual_seed(5)
        return Ticking(clock)

    return make


def test_a_checkpoint_whenever_the_time_has_passed_and_at_the_end_of_an_epoch(
    fit: Fit, ticking: Callable[[], Ticking], saved: list[int]
) -> None:
    result = fit(ticking(), max_steps=None, max_epochs=2, eval_every=1000, log_every=1000, save_every="95s")
    epoch = result.trainer.num_training_batches
    tens = [*range(10, epoch, 10), *range(epoch + 10, 2 * epoch, 10)]
    assert saved == sorted({*tens, epoch, 2 * epoch})
    assert 20 < epoch < 60


def test_short_epochs_are_not_spent_on_saving(
    fit: Fit, ticking: Callable[[], Ticking], saved: list[int], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # of epochs that take 400
    seconds = property(lambda self: 300.0 if saved else 0.0, lambda self, value: None)
    monkeypatch.setattr(RunCheckpoint, "save_seconds", seconds, raising=False)
    result = fit(ticking(), max_steps=None, max_epochs=3, eval_every=1000, log_every=1000, save_every="10h")
    epoch = result.trainer.num_training_batches
    assert saved == [epoch, 3 * epoch]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> list[float]:
    """The budget begins with the training, on the test's clock; filled with how much of it was left at the end."""
    left: list[float] = []
    begin = intime.StopInTime.on_train_start
    leave = intime.StopInTime._leave

    def on_train_start(self: intime.StopInTime, trainer: Any, pl_module: Any) -> None:
        self.budget = intime.Budget(clock.now, self.budget.seconds)
        begin(self, trainer, pl_module)

    def leaving(self: intime.StopInTime, trainer: Any) -> None:
        try:
            leave(self, trainer)
        except intime.OutOfTime:
            left.append(self.budget.began + self.budget.seconds - clock.now)
            raise

    monkeypatch.setattr(intime.StopInTime, "on_train_start", on_train_start)
    monkeypatch.setattr(intime.StopInTime, "_leave", leaving)
    return left


@pytest.mark.parametrize(("accumulate", "budget"), [pytest.param(1, 90, marks=pytest.mark.soak), (2, 130)])
def test_a_run_ends_in_time_and_goes_on_as_if_it_never_stopped(
    fit: Fit, ticking: Callable[[], Ticking], hurried: list[float], tmp_path: Path, accumulate: int, budget: int,
    clock: Clock, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write = SampleWriter.__call__

    def slowly(self: SampleWriter, step: int) -> None:
        clock.now += 25
        write(self, step)

    monkeypatch.setattr(SampleWriter, "__call__", slowly)
    settings: dict[str, Any] = {"max_steps": 14, "eval_every": 5, "accumulate_grad_batches": accumulate}
    unbroken = fit(ticking(), name="unbroken", **settings)
    run = tmp_path / "runs" / "run"
    result = fit(ticking(), max_time=f"{budget}s", **settings)
    stops = [result.results["steps"]]
    record = json.loads((run / "run.json").read_text())
    assert record["state"] == "paused"
    assert record["results"]["out_of_time"]
    assert not record["results"]["stopped_early"]
    assert record["error"] is None
    assert record["effective"]["total_steps"] == 14  # the schedule is not shortened
    assert any(finding["name"] == "max_time" and "paused at step" in finding["measured"]
               for finding in record["findings"])  # fmt: skip
    while stops[-1] < 14:
        result = fit(ticking(), resume=str(run), max_time=f"{budget}s", **settings)
        stops.append(result.results["steps"])
        assert len(stops) < 10
    assert len(stops) > 2
    assert stops == sorted(set(stops))  # each got on, with a budget of its own
    assert len(hurried) == len(stops) - 1
    assert all(0 < left < budget for left in hurried)  # never after its time
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert weights(run) == weights(unbroken.run_path)
    assert untimed_rows(run) == untimed_rows(unbroken.run_path)
    assert result.results["best_checkpoint"] == unbroken.results["best_checkpoint"]
    texts = [(path / "samples.jsonl").read_text() for path in (run, unbroken.run_path)]
    assert texts[0] == texts[1]


def test_an_evaluation_is_not_begun_that_would_take_too_long(
    fit: Fit, ticking: Callable[[], Ticking], hurried: list[float], tmp_path: Path
) -> None:
    module = ticking()
    plain = module.forward

    def forward(tokens: Tensor) -> Tensor:
        if module.armed and not module.training:
            module.clock.now += 30
        return plain(tokens)

    module.forward = forward  # type: ignore[method-assign]
    # steps of 10 s; evaluations of more than 100 s at 4 and 8: the second begins only where it can end
    result = fit(module, max_time="400s", max_steps=40)
    assert result.results["steps"] == 7
    assert hurried[0] > 0
    assert not result.results.get("bits_per_byte")  # all of it would have taken too long
    said = [finding for finding in result.findings if finding.name == "held-out text"]
    assert "anyformer evaluate" in said[0].reason
    assert result.results["val_loss"] is not None  # of the last evaluation


def test_samples_are_not_begun_that_would_take_too_long(
    fit: Fit, ticking: Callable[[], Ticking], hurried: list[float], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SampleWriter, "__call__", lambda self, step: setattr(clock, "now", clock.now + 100))
    result = fit(ticking(), max_time="250s", max_steps=40, eval_every=40)  # samples are due at step 20, after 200 s
    assert result.results["steps"] == 19
    assert hurried[0] > 0


@pytest.mark.soak  # by a real clock, which a busy machine does not keep
def test_the_command_ends_with_0_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], corpus: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("slow.py").write_text(
        "import time, torch\nfrom torch import nn\n\n\nclass Slow(nn.Module):\n"
        "    def __init__(self, vocab_size=40):\n        super().__init__()\n"
        "        self.e = nn.Embedding(vocab_size, 8)\n        self.h = nn.Linear(8, vocab_size)\n\n"
        "    def forward(self, tokens):\n        time.sleep(0.02)\n        return self.h(self.e(tokens))\n"
    )
    flags = ["--data", str(corpus), "--max_length", "16", "--max_steps", "100000", "--eval_every", "50000"]
    begin = time.monotonic()
    assert cli.main(["train", "slow.py", *flags, "--precision", "32", "--name", "a", "--max_time", "8s"]) == 0
    assert time.monotonic() - begin < 9.5  # with the report; the budget itself is kept
    shown = capsys.readouterr()
    assert "paused at step" in shown.err
    assert shown.out.rstrip().endswith("anyformer train --resume runs/a")
    record = json.loads(Path("runs/a/run.json").read_text())
    assert record["state"] == "paused"
    assert record["seconds"] < 8
    assert "Paused at step" in Path("runs/a/report.html").read_text()
    assert list(Path("runs/a/checkpoints").iterdir())


def test_a_wrong_length_is_refused_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "example:gpt", "--max_time", "90"]) == 2
    assert "max_time is '90'; it has no unit" in capsys.readouterr().err

"""A run that is saved while it goes on: what is written, when it counts, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anyformer.core.errors import CheckpointError, Interrupted
from anyformer.runs import background, checkpoints
from anyformer.runs.background import BackgroundCheckpointIO
from anyformer.runs.checkpoints import DirectoryCheckpointIO, list_checkpoints
from anyformer.runs.metrics import CsvMetrics
from anyformer.training.coordinator import TrainResult
from anyformer.training.saving import RunCheckpoint
from tests.training.small_models import Small

Fit = Callable[..., TrainResult]
NAME = "anyformer-checkpoints"


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert NAME not in [thread.name for thread in threading.enumerate()]


def wait_for(event: threading.Event) -> None:
    """Not for ever, lest a test hang."""
    assert event.wait(30)


class Held:
    """The save of step 8 stops before its first file is put on the disk, and does what it is told there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.then: Callable[[], None] = lambda: None
        self.begun, self.waited, self.given_up = threading.Event(), threading.Event(), threading.Event()
        sync, save = checkpoints.sync_file, BackgroundCheckpointIO.save_checkpoint
        wait, abandon = BackgroundCheckpointIO.wait, BackgroundCheckpointIO.abandon

        def saving(io: BackgroundCheckpointIO, checkpoint: Any, path: Path, storage_options: Any = None) -> None:
            save(io, checkpoint, path)
            if checkpoint["global_step"] == 8:
                self.begun.set()

        def held(path: Path) -> None:
            if ".step-00000008" in str(path) and path.name == "model.safetensors":
                self.then()
            sync(path)

        def waiting(io: BackgroundCheckpointIO) -> None:
            if self.begun.is_set():
                self.waited.set()
            wait(io)

        def giving_up(io: BackgroundCheckpointIO) -> None:
            io._io.abandoned.set()
            self.given_up.set()
            abandon(io)

        monkeypatch.setattr(checkpoints, "sync_file", held)
        monkeypatch.setattr(BackgroundCheckpointIO, "save_checkpoint", saving)
        monkeypatch.setattr(BackgroundCheckpointIO, "wait", waiting)
        monkeypatch.setattr(BackgroundCheckpointIO, "abandon", giving_up)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch)


def names(run: Path) -> list[str]:
    """All that lies in the folder of the checkpoints."""
    return sorted(path.name.removeprefix("step-000000") for path in (run / "checkpoints").iterdir())


def same(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{where}/{index}")
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def test_each_checkpoint_is_the_one_that_a_waiting_run_saves(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[int, Any]] = []
    threads: set[str] = set()
    save, write = DirectoryCheckpointIO.save_checkpoint, checkpoints.write_tensors

    def noted(self: DirectoryCheckpointIO, checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        threads.add(threading.current_thread().name)
        save(self, checkpoint, path)
        found[-1][checkpoint["global_step"]] = self.load_checkpoint(path)

    def late(*args: Any, **more: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            threading.Event().wait(0.1)  # the training is steps ahead
        return write(*args, **more)

    monkeypatch.setattr(DirectoryCheckpointIO, "save_checkpoint", noted)
    monkeypatch.setattr(checkpoints, "write_tensors", late)
    settings: dict[str, Any] = {"max_steps": 15, "eval_every": 5, "accumulate_grad_batches": 2, "save_every": "never"}
    for name, free in (("waiting", 0), ("going-on", None)):
        found.append({})
        threads.clear()
        monkeypatch.setattr(background, "available_memory", lambda free=free: free)
        result = fit(name=name, **settings)
        assert threads == {NAME if free is None else "MainThread"}
        assert len([finding for finding in result.findings if finding.name == "saving"]) == (free is not None)
    assert list(found[0]) == list(found[1]) == [5, 10, 15]
    for waiting, going_on in zip(found[0].values(), found[1].values(), strict=True):
        for checkpoint in (waiting, going_on):  # what the clock and the run's own folder give
            for kept in checkpoint["callbacks"].values():
                for timed in ("seconds", "train_seconds", "dirpath", "best_model_path", "kth_best_model_path"):
                    kept.pop(timed, None)
                if "best_k_models" in kept:
                    kept["best_k_models"] = {
                        Path(path).name: kept["best_k_models"][path] for path in kept["best_k_models"]
                    }
        same(waiting, going_on)


def test_nothing_counts_before_it_is_on_the_disk(fit: Fit, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, tuple[set[str], set[str], str]] = {}
    told: list[str] = []
    passed = threading.Event()
    end = RunCheckpoint.on_train_batch_end

    def on_train_batch_end(self: RunCheckpoint, trainer: Any, *args: Any) -> None:
        end(self, trainer, *args)
        best = {Path(self.best_model_path).name, *(Path(path).name for path in self.best_k_models)}
        there = {path.name for path in list_checkpoints(Path(str(self.dirpath)).parent)}
        seen[trainer.global_step] = (best, there, Path(self._last_checkpoint_saved).name)
        if trainer.global_step == 10:
            passed.set()

    def saved(self: CsvMetrics, checkpoint: RunCheckpoint) -> None:
        told.append(Path(checkpoint._last_checkpoint_saved).name)
        assert Path(checkpoint._last_checkpoint_saved).is_dir()

    monkeypatch.setattr(RunCheckpoint, "on_train_batch_end", on_train_batch_end)
    monkeypatch.setattr(CsvMetrics, "after_save_checkpoint", saved)
    held.then = lambda: wait_for(passed)
    result = fit(max_steps=16, eval_every=4, save_top_k=1, learning_rate=1e-3)
    four, eight = "step-00000004", "step-00000008"
    for step in (9, 10):
        assert seen[step] == ({four}, {four}, four)  # a lower loss at step 8, but not on the disk
    best = result.trainer.checkpoint_callback
    assert isinstance(best, RunCheckpoint)
    assert eight in seen[13][0] | seen[13][1]
    assert told == [f"step-{step:08d}" for step in (4, 8, 12, 16)]
    assert names(result.run_path) == ["12", "16"]
    assert Path(best.best_model_path).name == "step-00000016"
    assert best.stalled > 0
    assert not [finding for finding in result.findings if finding.name == "saving"]


def refuse() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("steps", [20, pytest.param(8, marks=pytest.mark.soak)])  # while it trains on, and at the end
def test_a_save_that_fails_ends_the_run_as_ever(fit: Fit, held: Held, tmp_path: Path, steps: int) -> None:
    held.then = refuse
    with pytest.raises(CheckpointError, match="no space left to save the checkpoint step-00000008") as caught:
        fit(max_steps=steps, eval_every=4, save_every="never", save_top_k=1)
    run = tmp_path / "runs" / "run"
    assert names(run) == ["04"]
    assert "earlier checkpoints are untouched (newest: step-00000004)" in caught.value.detail
    record = json.loads((run / "run.json").read_text())
    assert record["state"] == "failed"
    assert "no space left" in record["error"]
    assert record["history"][-1]["step"] == 4
    assert "results" not in record or not record["results"]


@pytest.mark.soak
def test_a_failed_save_is_told_at_the_next_step(fit: Fit, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    held.then = refuse
    steps: list[int] = []
    end = RunCheckpoint.on_train_batch_end

    def on_train_batch_end(self: RunCheckpoint, trainer: Any, *args: Any) -> None:
        steps.append(trainer.global_step)
        if trainer.global_step == 10:
            while self._background is not None and self._background.busy:
                threading.Event().wait(0.01)
        end(self, trainer, *args)

    monkeypatch.setattr(RunCheckpoint, "on_train_batch_end", on_train_batch_end)
    with pytest.raises(CheckpointError, match="no space left"):
        fit(max_steps=1000, eval_every=4, save_every="never")
    assert steps[-1] in (9, 10)


@pytest.mark.soak
def test_a_signal_waits_for_the_save_in_flight_and_saves(fit: Fit, held: Held, tmp_path: Path) -> None:
    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(held.waited)

    held.then = stop
    with pytest.raises(Interrupted) as caught:
        fit(max_steps=1000, eval_every=8, save_every="never")
    kept = names(tmp_path / "runs" / "run")
    assert kept[0] == "08"
    assert len(kept) <= 2  # and the step that the signal came in
    assert caught.value.exit_code == 143
    assert caught.value.detail.endswith(f"step-000000{kept[-1]}")
    assert "saved as" in caught.value.detail


def test_a_second_signal_leaves_at_once_and_nothing_half_written(fit: Fit, held: Held, tmp_path: Path) -> None:
    def stop_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(held.waited)
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(held.given_up)

    held.then = stop_twice
    with pytest.raises(Interrupted) as caught:
        fit(max_steps=1000, eval_every=4, save_every="never")
    assert held.given_up.is_set()
    assert names(tmp_path / "runs" / "run") == ["04"]
    assert "this step is not saved; the newest checkpoint is of step 4" in caught.value.detail
    assert caught.value.exit_code == 130


class Failing(Small):
    """Its training ends in an error once the save of step 8 is in flight."""

    def __init__(self, held: Held) -> None:
        torch.manual_seed(5)
        super().__init__()
        self.held = held

    def forward(self, tokens: Tensor) -> Tensor:
        if self.held.begun.is_set() and self.training and torch.is_grad_enabled():
            raise RuntimeError("my own mistake")
        return super().forward(tokens)

    def __deepcopy__(self, memo: Any) -> Failing:
        return self


@pytest.mark.soak
def test_an_error_in_training_leaves_the_save_in_flight_whole(fit: Fit, held: Held, tmp_path: Path) -> None:
    held.then = lambda: wait_for(held.waited)
    with pytest.raises(RuntimeError, match="my own mistake"):
        fit(Failing(held), max_steps=1000, eval_every=4, save_every="never")
    assert held.waited.is_set()
    assert names(tmp_path / "runs" / "run") == ["04", "08"]


@pytest.mark.soak
def test_of_two_errors_the_training_s_own_is_raised_and_the_other_said(fit: Fit, held: Held, tmp_path: Path) -> None:
    def fail() -> None:
        wait_for(held.waited)
        refuse()

    held.then = fail
    with (
        pytest.warns(UserWarning, match="no space left to save the checkpoint step-00000008"),
        pytest.raises(RuntimeError, match="my own mistake"),
    ):
        fit(Failing(held), max_steps=1000, eval_every=4, save_every="never")
    assert names(tmp_path / "runs" / "run") == ["04"]

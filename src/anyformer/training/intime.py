"""What a run does by the clock: checkpoints between evaluations, and an end in order before its time is up."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from anyformer.training.callbacks import SampleText, evaluation_follows
from anyformer.training.effective import Effective
from anyformer.training.saving import RunCheckpoint
from anyformer.training.sharing import agreed
from anyformer.training.stopping import StopRequested

SAVING_SHARE = 0.05
"""Of the wall time at most is spent on the checkpoints at the ends of short epochs."""
_MEASURING_SHARE = 0.05
"""Of the time of a run at most is kept for the measurement on all of the held-out text."""
_MARGIN_SHARE, _MARGIN_MOST = 0.02, 30.0  # seconds; for what nobody foresees: a slow disk, a busy machine
_BYTES_PER_SECOND = 50e6  # of a slow disk, until the first checkpoint was timed


class OutOfTime(StopRequested):
    """Leaves Lightning's loop because ``max_time`` is about to be up; the step is finished and saved."""


class SaveInTime(Checkpoint):
    """A checkpoint whenever ``seconds`` have passed since the last one, and at the end of each epoch.

    It is counted among the best only where it was evaluated; else the next one takes its place. Saving reads the state
    and changes nothing of it. The end of an epoch is left out where the epochs are so short that saving would take more
    than ``SAVING_SHARE`` of the time.
    """

    def __init__(self, checkpoint: RunCheckpoint, seconds: float) -> None:
        self._checkpoint = checkpoint
        self._seconds = seconds
        self._began = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate() or evaluation_follows(trainer):
            return  # an evaluation saves
        passed = time.monotonic() - max(self._began, self._checkpoint.saved_at)
        ended = trainer.is_last_batch and passed * SAVING_SHARE >= self._checkpoint.save_seconds
        if agreed(passed >= self._seconds or ended):
            self._checkpoint.save_now(trainer)


@dataclass(frozen=True)
class Budget:
    """How long a run may take. began: ``time.monotonic`` when it began."""

    began: float
    seconds: float

    @property
    def left(self) -> float:
        """Seconds until it is up, less a margin."""
        margin = min(_MARGIN_MOST, _MARGIN_SHARE * self.seconds)
        return self.began + self.seconds - margin - time.monotonic()


class StopInTime(Checkpoint):
    """Ends a run while there is time left to finish the step, to save and to measure.

    What comes next is timed as it comes: the longest of the last steps, evaluations and checkpoints so far; before the
    first of them, from the steps and the size of the model. An evaluation that is due takes place or is not begun: the
    resumed run then makes it, so that it ends as one that was never stopped.
    """

    def __init__(
        self,
        budget: Budget,
        checkpoint: RunCheckpoint,
        samples: SampleText | None,
        effective: Effective,
        held_out_blocks: int,
        batch_size: int,
    ) -> None:
        self.budget = budget
        self._samples = samples
        self._checkpoint = checkpoint
        self._effective = effective
        self._held_out_blocks = held_out_blocks
        self._batch_size = batch_size
        self._step_seconds: list[float] = []
        self._batch_seconds = 0.0
        self._evaluation_seconds = 0.0
        self._mark = 0.0
        self._begun = 0.0
        self._asked = False
        self._samples_due = False

    def state_dict(self) -> dict[str, Any]:
        return {"evaluation_seconds": self._evaluation_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._evaluation_seconds = state_dict["evaluation_seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mark = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._begun = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if trainer.fit_loop._should_accumulate():
            return
        sampled = self._samples.seconds if self._samples is not None and self._samples_due else 0.0
        self._step_seconds = [*self._step_seconds[-9:], now - self._mark - sampled]
        self._batch_seconds = now - self._begun - sampled
        self._mark = now
        step = trainer.global_step
        self._samples_due = self._samples is not None and self._samples.due(step + 1)
        if step >= self._effective.total_steps or not agreed(self.budget.left <= self._needed(pl_module, step + 1)):
            return
        self._asked = True
        if not evaluation_follows(trainer):
            self._leave(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = time.monotonic()
        self._evaluation_seconds = max(self._evaluation_seconds, now - self._begun)
        self._mark = now
        if not trainer.should_stop:  # it ends by itself
            self._leave(trainer)

    def measuring_seconds(self) -> float:
        """About how long the measurement on all that is held out takes."""
        return 1.5 * self._evaluation() * self._held_out_blocks / max(1, self._effective.eval_blocks)

    def _leave(self, trainer: pl.Trainer) -> None:
        if self._asked:
            self._checkpoint.save_now(trainer)
            self._checkpoint.settle()
            raise OutOfTime

    def _evaluation(self) -> float:
        if self._evaluation_seconds:
            return self._evaluation_seconds
        return self._batch_seconds * self._effective.eval_blocks / self._batch_size  # no longer than training on them

    def _needed(self, pl_module: pl.LightningModule, following: int) -> float:
        """Seconds for one more step, all that comes with it, and the end of the run."""
        effective = self._effective
        save = self._checkpoint.longest_save
        if not save:
            save = 1 + sum(3 * p.numel() * p.element_size() for p in pl_module.parameters()) / _BYTES_PER_SECOND
        needed = max(self._step_seconds) + 2 * save
        if following % effective.eval_every == 0 or following == effective.total_steps:
            needed += self._evaluation()
        if self._samples is not None and self._samples_due:
            needed += self._samples.seconds
        return needed + min(self.measuring_seconds(), _MEASURING_SHARE * self.budget.seconds)

"""A run's checkpoints: when one counts as saved, which are kept."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import proxy

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from anyformer.core.errors import CheckpointError
from anyformer.core.findings import Finding
from anyformer.runs.background import BackgroundCheckpointIO
from anyformer.runs.checkpoints import MANIFEST, step_of

_BEST = ("best_k_models", "best_model_path", "best_model_score", "kth_best_model_path", "kth_value", "current_score")


@dataclass
class _Flight:
    """A checkpoint that is being written. seconds: how long the training waited for that; best: the best with it."""

    path: str
    seconds: float
    trainer: pl.Trainer
    best: dict[str, Any] = field(default_factory=dict)


class RunCheckpoint(ModelCheckpoint):
    """The best ``save_top_k`` by ``monitor`` and always the two newest, each a folder ``step-00001200``.

    An older one goes only once its successor is on the disk and was read back (DirectoryCheckpointIO does both).
    background: the trainer's way to the disk, where that writes while the training goes on. A checkpoint in flight is
    not among the saved ones, the best ones included, before ``settle`` has seen that it is whole.
    """

    FILE_EXTENSION = ""

    def __init__(
        self,
        folder: Path,
        save_top_k: int,
        monitor: str = "val_loss",
        mode: str = "min",
        background: BackgroundCheckpointIO | None = None,
    ) -> None:
        super().__init__(
            dirpath=folder,
            filename="step-{step:08d}",
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._newest: str | None = None
        self._previous: str | None = None
        self._there: list[str] = []
        """All that were saved and not removed: what a kill kept from being removed goes later."""
        self._background = background
        self._flight: _Flight | None = None
        self.saved_at = 0.0
        """When the state of the last one was taken, as time.monotonic gives it."""
        self.save_seconds = 0.0
        """How long the last one took, in the background included, and the longest of them."""
        self.longest_save = 0.0
        self.stalled = 0.0
        """Seconds that all of them kept the training waiting."""

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        self.settle()
        if filepath not in self._there:
            self._there.append(filepath)
        begin = time.monotonic()
        trainer.save_checkpoint(filepath, self.save_weights_only)
        self.saved_at = time.monotonic()
        self.stalled += self.saved_at - begin
        self._last_global_step_saved = trainer.global_step  # a second one of this step would be the same
        self._flight = _Flight(filepath, self.saved_at - begin, trainer)
        if self._background is None or not self._background.busy:
            self.settle()

    def settle(self) -> None:
        """Wait for the checkpoint in flight; then it counts. Raises what its save failed with."""
        flight = self._flight
        if flight is None:
            return
        begin = time.monotonic()
        written = 0.0
        if self._background is not None:
            try:
                self._background.wait()
            except Exception:
                self._flight = None
                raise
            written = self._background.seconds
        self._flight = None
        self.stalled += time.monotonic() - begin
        self.save_seconds = flight.seconds + written
        self.longest_save = max(self.longest_save, self.save_seconds)
        self._last_checkpoint_saved = flight.path
        if self._newest != flight.path:
            self._newest, self._previous = flight.path, self._newest
        vars(self).update(flight.best)
        self._there = [path for path in self._there if not _is_gone(path)]
        if flight.trainer.is_global_zero:
            for logger in flight.trainer.loggers:
                logger.after_save_checkpoint(proxy(self))

    def findings(self) -> list[Finding]:
        """What saving could not do in the background."""
        return [] if self._background is None else self._background.findings()

    def abandon(self) -> None:
        """Give up the checkpoint in flight: nothing of it stays."""
        if self._background is not None:
            self._background.abandon()
        self._flight = None

    def _update_best_and_save(
        self, current: torch.Tensor, trainer: pl.Trainer, monitor_candidates: dict[str, torch.Tensor]
    ) -> None:
        """Lightning's counts it among the best before it is saved: its file is to say so, this object only then."""
        before = self._best()
        try:
            super()._update_best_and_save(current, trainer, monitor_candidates)
        except BaseException:
            vars(self).update(before)
            raise
        if self._flight is not None:
            self._flight.best = self._best()
            vars(self).update(before)

    def _best(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in _BEST} | {"best_k_models": dict(self.best_k_models)}

    @property
    def saved_step(self) -> int:
        """The step of the newest one that counts; 0 for none."""
        return step_of(Path(self._newest)) if self._newest is not None else 0

    def path_of(self, step: int) -> str:
        """Where the checkpoint of a step lies."""
        return str(Path(str(self.dirpath)) / f"step-{step:08d}")

    def save_now(self, trainer: pl.Trainer) -> Path:
        """Save the state as it is, if this step is not saved yet; the newest before it goes unless it is a best one."""
        newest = self.path_of(trainer.global_step)
        if self._last_global_step_saved != trainer.global_step:
            self._save_checkpoint(trainer, newest)
        self._remove_others(trainer)
        return Path(newest)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step:
            self._go_on_from(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_end(trainer, pl_module)
        if self._newest is None and trainer.global_step:  # resumed at its last step: no training was started
            self._go_on_from(trainer)

    def _go_on_from(self, trainer: pl.Trainer) -> None:
        """Resumed: its checkpoint is the newest, and what a kill kept from being removed goes."""
        self._newest = self.path_of(trainer.global_step)
        self._last_global_step_saved = trainer.global_step
        self._there = [path for path in self._there if (Path(path) / MANIFEST).is_file()]
        before = [path for path in self._there if path < self._newest]
        self._previous = max(before, default=None)
        self._remove_others(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._flight is not None and self._background is not None and not self._background.busy:
            self.settle()  # a full disk ends the run now, not at the next save

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self.settle()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.settle()  # which are the best so far
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.save_now(trainer)

    def _remove_others(self, trainer: pl.Trainer) -> None:
        """All but the best and the two newest; one that the disk does not let go of is tried again the next time."""
        kept = {self._newest, self._previous, *self.best_k_models}
        if self._flight is not None:  # then they go once it is whole
            newest = [path for path in (self._newest, self._previous) if path != self._flight.path]
            kept = {self._flight.path, *newest[:1], *self._flight.best.get("best_k_models", self.best_k_models)}
        for path in [path for path in self._there if path not in kept]:
            try:
                self._remove_checkpoint(trainer, path)
            except CheckpointError as error:
                warnings.warn(f"{error.what}; training goes on", stacklevel=2)
        if self._flight is None:
            self._there = [path for path in self._there if not _is_gone(path)]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "there": [Path(path).name for path in self._there]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The best ones that are still there: the run may have been moved, and others removed since it was saved."""
        folder = Path(str(self.dirpath))
        self._there = [str(folder / name) for name in state_dict.get("there", [])]
        here = {str(folder / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
        sign = 1 if self.mode == "min" else -1
        there = sorted((sign * float(score), path) for path, score in here.items() if (Path(path) / MANIFEST).is_file())
        kept = there if self.save_top_k < 0 else there[: self.save_top_k]
        self.best_k_models = {path: here[path] for _, path in kept}
        if self.best_k_models:
            paths = list(self.best_k_models)
            self.best_model_path, self.best_model_score = paths[0], self.best_k_models[paths[0]]
            self.kth_best_model_path, self.kth_value = paths[-1], self.best_k_models[paths[-1]]

    def _should_remove_checkpoint(self, trainer: pl.Trainer, previous: str, current: str) -> bool:
        return False  # that is done after each save, by one rule: _remove_others


def _is_gone(path: str) -> bool:
    try:
        return not Path(path).exists()
    except OSError:  # a failing disk: asked again after the next save
        return False

"""The callbacks of CheckpointManager: durable checkpoints and their backup, in a trainer that knows of neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from anyformer.core.protocols import View
from anyformer.core.view import PlainView
from anyformer.data.dataset_loader import on_drive
from anyformer.runs.backup import WAIT, WAIT_STOPPED, Backup
from anyformer.runs.checkpoints import MANIFEST, DirectoryCheckpointIO, checkpoints_in
from anyformer.runs.elsewhere import STAGING
from anyformer.runs.foreign import read_ckpt
from anyformer.runs.remote import RemoteFolder
from anyformer.training.callbacks import KeepRandomState
from anyformer.training.saving import RunCheckpoint

DRIVE_FOLDER = "MyDrive/checkpoints"


def backup_place(path: str | Path | None) -> str:
    """A path below the mounted Drive as a whole one; whole paths and URLs as they are. Raises DataNotFound."""
    text = str(path or DRIVE_FOLDER)
    if "://" in text or Path(text).expanduser().is_absolute():
        return text
    return str(on_drive(Path(text)))


class ManagedCheckpoint(RunCheckpoint):
    """The best ``save_top_k`` and the two newest, as verified directories, in a trainer that knows nothing of them.

    Saves after each evaluation, after each epoch where there is none, and with it the random number generators. Unlike
    in a run, the training waits for it: a trainer of others may read or end right after a save, and nobody would wait.
    """

    def __init__(
        self, folder: Path, save_top_k: int, monitor: str, mode: str, backup: DriveBackupCallback | None = None
    ) -> None:
        super().__init__(folder, save_top_k, monitor, mode)
        self.seen: pl.LightningModule | None = None
        """The module of the last trainer."""
        self._random = KeepRandomState()
        self._backup = backup

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put our way to the disk into the trainer, for paths in this folder."""
        super().setup(trainer, pl_module, stage)
        self.seen = pl_module
        io = trainer.strategy.checkpoint_io
        if not (isinstance(io, _ByFolder) and io.folder == Path(str(self.dirpath))):
            offer = self._backup.offer if self._backup is not None and trainer.is_global_zero else None
            trainer.strategy.checkpoint_io = _ByFolder(Path(str(self.dirpath)), io, offer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        evaluates = trainer.enable_validation and any(count > 0 for count in trainer.num_val_batches)
        if not evaluates and not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            if self.monitor in candidates:
                self._save_topk_checkpoint(trainer, candidates)
            self.save_now(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "random": self._random.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "random" in state_dict:
            self._random.load_state_dict(state_dict["random"])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # a loader draws its order before the first batch: between two epochs the generators come back before that
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if progress.is_last_batch or progress.current.ready == 0:
            self._random.on_train_batch_start(trainer, pl_module, None, 0)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._random.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        if self._backup is not None:
            self._backup.finish(WAIT_STOPPED)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if self._backup is not None and stage == "fit":
            self._backup.finish()


class _ByFolder(CheckpointIO):
    """Paths in one folder are ours; every other path is as it was. What is loaded is read as data only."""

    def __init__(self, folder: Path, other: CheckpointIO, on_saved: Callable[[Path], None] | None) -> None:
        self.folder = folder
        self._own = DirectoryCheckpointIO(on_saved=on_saved)
        self._other = other

    def _is_ours(self, path: str | Path) -> bool:
        return Path(path).absolute().parent == self.folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        io = self._own if self._is_ours(path) else self._other
        io.save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if (Path(path) / MANIFEST).is_file() or self._is_ours(path):
            return self._own.load_checkpoint(path, map_location)
        if "://" not in str(path) and weights_only is not False:  # False: what the caller asked Lightning for
            return read_ckpt(path, map_location or "cpu")
        return self._other.load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: str | Path) -> None:
        (self._own if self._is_ours(path) else self._other).remove_checkpoint(path)


class DriveBackupCallback(pl.Callback):
    """Copies the checkpoints of a folder elsewhere while a trainer runs; waits for the last one at the end.

    checkpoint_dir: the folder. drive_path: as ``drive_backup_path`` of CheckpointManager. A backup that fails warns
    once and is tried again; it never stops the training.
    """

    def __init__(
        self, checkpoint_dir: str | Path, drive_path: str | Path | None = None, *, view: View | None = None
    ) -> None:
        self.checkpoint_dir = Path(checkpoint_dir).expanduser()
        self.drive_path = backup_place(drive_path)
        self._view = view or PlainView()
        self._remote = RemoteFolder(self.drive_path)  # a missing package is said now, not after hours
        self._backup: Backup | None = None
        self._offered: set[str] = set()

    def offer(self, folder: Path) -> None:
        """Have one checkpoint copied; returns at once."""
        if self._backup is None:
            staging = self.checkpoint_dir.resolve() / STAGING
            self._backup = Backup(
                self.drive_path, self.checkpoint_dir, staging, self._view, place=lambda: self._remote, prune_all=False
            )
        self._offered.add(_version(folder))
        self._backup.offer(folder)

    def finish(self, limit: float = WAIT) -> None:
        """Wait for what is still being copied, at most ``limit`` seconds, and say how it went."""
        backup, self._backup = self._backup, None
        if backup is not None:
            for finding in backup.close(limit):
                self._view.finding(finding)
            backup.stop()

    def _look(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            for folder in reversed(checkpoints_in(self.checkpoint_dir)):
                if (folder / MANIFEST).is_file() and _version(folder) not in self._offered:
                    self.offer(folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._offered = {_version(folder) for folder in checkpoints_in(self.checkpoint_dir)}  # of earlier runs

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._look(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._look(trainer)  # what the evaluation before this one saved: its callback comes after this one

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._look(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.finish(WAIT_STOPPED)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._look(trainer)
            self.finish()


def _version(folder: Path) -> str:
    """A checkpoint's name and when it was completed: the same step may be saved again."""
    try:
        return f"{folder.name} {(folder / MANIFEST).stat().st_mtime_ns}"
    except OSError:
        return folder.name

"""Leaving a run in order: a signal finishes the step, saves and ends it."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from anyformer.core.errors import CheckpointError
from anyformer.core.protocols import View
from anyformer.training.callbacks import evaluation_follows
from anyformer.training.saving import RunCheckpoint
from anyformer.training.sharing import agreed

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what clusters and containers send before they kill."""


class StopRequested(BaseException):
    """Leaves Lightning's loop after the step that a signal interrupted was finished and saved.

    Like KeyboardInterrupt no Exception: a model's or a library's own ``except Exception`` must not hold it.
    """


class StopOnSignal(Checkpoint):  # Lightning runs these last, in their order: after what an evaluation is judged by
    """Ctrl-C finishes the step (and the evaluation that belongs to it), saves, and leaves; a second one leaves at once.

    What follows training has nothing to save: there the first one leaves at once. Use ``listening`` around
    ``trainer.fit`` and what the run does after it: Lightning itself answers a KeyboardInterrupt by ending the process.
    """

    def __init__(self, checkpoint: RunCheckpoint, view: View) -> None:
        self._checkpoint = checkpoint
        self._view = view
        self._asked = False
        self._training = False
        self.received = int(signal.SIGINT)
        """The signal that stopped the run."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answer Ctrl-C and SIGTERM until the block ends; outside the main thread nothing can.

        However the block ends, no checkpoint is in flight afterwards: it is whole, or nothing of it is there.
        """
        if threading.current_thread() is not threading.main_thread():
            with self._settled():
                yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            with self._settled():
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @contextmanager
    def _settled(self) -> Iterator[None]:
        try:
            try:
                yield
            except StopRequested:
                raise
            except BaseException:
                try:
                    self._checkpoint.settle()
                except CheckpointError as error:  # what ended the run matters more
                    warnings.warn(f"{error.what}: {error.detail}", stacklevel=2)
                raise
            self._checkpoint.settle()
        except StopRequested:  # at once; where the step was to be saved first, that is done
            self._checkpoint.abandon()
            raise

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self._asked or not self._training:
            raise StopRequested
        self._asked = True
        self._view.line("  stopping after this step (a second signal: at once, without saving)")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:  # Lightning has put its own handler for SIGTERM in the meantime
                signal.signal(number, self._on_signal)
        self._training = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # where an evaluation follows it still takes place: a resumed run would go on behind it
        if trainer.fit_loop._should_accumulate() or evaluation_follows(trainer):
            return
        if self._is_asked():
            self._leave(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._is_asked():
            self._leave(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._training = False  # a signal from now on finds no step to finish

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = False
        if self._is_asked():  # it came after the last evaluation
            self._leave(trainer)

    def _is_asked(self) -> bool:
        """Whether a signal came to any process of the run: all leave after the same step."""
        if number := agreed(self.received if self._asked else 0):
            self._asked, self.received = True, number
        return self._asked

    def _leave(self, trainer: pl.Trainer) -> None:
        self._checkpoint.save_now(trainer)
        self._checkpoint.settle()
        raise StopRequested

"""What happens around the steps of a run: progress, samples, checkpoints."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping

from anyformer.core.protocols import Progress, View
from anyformer.training.adapter import UniversalModelAdapter
from anyformer.training.sharing import of_all, process_count, process_rank, stream_seed


class ShowProgress(pl.Callback):
    """Moves the view's bar: step, loss, tokens per second, time left. Reads nothing from the device.

    The rate counts training only, over the last ``window`` seconds; evaluation and samples in between are left out of
    the rate and counted in the time left as they have been so far.
    """

    def __init__(self, view: View, total_steps: int, every: float = 0.2, window: float = 5.0) -> None:
        self.view = view
        self.total_steps = total_steps
        self.tokens = 0
        self.train_seconds = 0.0
        self._every = every
        self._window = window
        self._shown = 0.0
        self._resumed_step = 0
        self._began = 0.0
        self._last = 0.0
        self._mark = (0.0, 0)
        self._rate: float | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Mean over the whole run, evaluation left out; None before the second step."""
        return self.tokens / self.train_seconds if self.train_seconds > 0 else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._resumed_step = trainer.global_step
        self._began = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "train_seconds": self.train_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens, self.train_seconds = state_dict["tokens"], state_dict["train_seconds"]
        self._mark = (self.train_seconds, self.tokens)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._last = time.monotonic()
        self._began = self._began or self._last  # not before the first step: the first samples take their time

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        now = time.monotonic()
        self.train_seconds += now - self._last
        mine = int(batch.get("tokens", batch["input_ids"].numel()))  # of padded batches what is no padding
        self.tokens += mine * process_count()  # the others have as many, or one row less
        seconds, tokens = self.train_seconds - self._mark[0], self.tokens - self._mark[1]
        if self._rate is None or seconds >= self._window:
            self._rate = tokens / max(seconds, 1e-9)
            self._mark = (self.train_seconds, self.tokens)
        if now - self._shown < self._every and trainer.global_step < self.total_steps:
            return
        self._shown = now
        done = trainer.global_step
        mine = done - self._resumed_step
        left = (now - self._began) / mine * (self.total_steps - done) if mine > 2 else None  # the first steps are slow
        loss = pl_module.last_train_loss if isinstance(pl_module, UniversalModelAdapter) else None
        self.view.progress(
            Progress(done, self.total_steps, None if loss is None or loss != loss else loss, self._rate, left)
        )


class EvaluateEvery(pl.Callback):
    """Evaluates after every ``steps`` optimizer steps.

    Lightning counts batches: where an epoch's batches are no multiple of the accumulated ones, its interval falls into
    the middle of a step, and a checkpoint there would lose the gradients gathered so far.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = not trainer.fit_loop._should_accumulate() and trainer.global_step % self.steps == 0
        trainer.val_check_batch = 1 if due else sys.maxsize  # "every batch", "never": read right after this hook


def evaluation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning evaluates between this on_train_batch_end and the next batch."""
    return trainer.val_check_batch == 1 or trainer.should_stop


class EndAt(pl.Callback):
    """Ends the run at a step, with an evaluation there, whether or not the step falls on the evaluation interval."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= self.total_steps:
            trainer.should_stop = True  # Lightning evaluates before it leaves


class EarlyStop(EarlyStopping):
    """Lightning's; a resumed run goes on with its count, and with the patience that is set now."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})


class SampleText(pl.Callback):
    """Writes samples at the start, the middle and the end of the run."""

    def __init__(self, total_steps: int, write: Callable[[int], None]) -> None:
        self._moments = {total_steps // 2}
        self._write = write
        self.seconds = 0.0
        """How long it took the last time."""

    def due(self, step: int) -> bool:
        """Whether samples are written after this step."""
        return step in self._moments

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]

    def _write_now(self, step: int) -> None:
        begin = time.monotonic()
        self._write(step)
        self.seconds = time.monotonic() - begin

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self._write_now(0)
        self._moments = {step for step in self._moments if step > trainer.global_step}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step in self._moments:
            self._moments.discard(trainer.global_step)
            self._write_now(trainer.global_step)


class KeepRandomState(pl.Callback):
    """Saves the random number generators with each checkpoint; a resumed run goes on with the same dropout masks.

    shared: those of every process of the run, in one checkpoint; every process has to save at the same time. Where a
    run goes on with more of them than before, the new ones begin streams of their own.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self._shared = shared
        self._restore: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        first, *others = of_all(_random_state()) if self._shared else [_random_state()]
        return {**first, "others": others} if others else first

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restore = state_dict

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._restore is None:
            return
        state, self._restore = self._restore, None
        rank = process_rank() if self._shared else 0
        saved = [state, *state.get("others", ())]
        if rank < len(saved):
            _set_random_state(saved[rank])
        else:
            torch.manual_seed(stream_seed(int(getattr(pl_module, "seed", 0)), trainer.global_step, rank))


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
    }
    if torch.cuda.is_available():
        # of several processes each has its own device, and asking for another's state would take memory there
        state["cuda"] = [torch.cuda.get_rng_state()] if process_count() > 1 else torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        if process_count() > 1 or len(state["cuda"]) != torch.cuda.device_count():
            torch.cuda.set_rng_state(state["cuda"][0])
        else:
            torch.cuda.set_rng_state_all(state["cuda"])

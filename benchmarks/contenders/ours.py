"""anyformer's own loop: the trainer that ``anyformer train`` builds, with its callbacks, logging and checkpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from anyformer.core.settings import TrainSettings
from anyformer.core.view import QuietView
from anyformer.models.callplan import CallPlan, infer_call_plan
from anyformer.runs.directory import RunDirectory
from anyformer.training import UniversalModelAdapter
from anyformer.training.effective import Effective, derive
from anyformer.training.fit import build_trainer, quiet_lightning
from anyformer.training.prepare import prepare_text
from anyformer.training.text import Text
from benchmarks.contenders.common import LEARNING_RATE, WARMUP_STEPS, BareLoop


class Alternate(pl.Callback):
    """Runs one bare step on the same batch after each of ours and notes the CPU time of both."""

    def __init__(self, bare: BareLoop | None) -> None:
        self.bare = bare
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.our_losses: list[Tensor] = []
        self._resumed = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._resumed = time.process_time()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.ours.append(time.process_time() - self._resumed)
        self.our_losses.append(outputs["loss"].detach())
        if self.bare is None:
            return
        begin = time.process_time()
        ids = batch["input_ids"].clone()  # the bare loop reads a batch of its own, too
        targets = torch.cat([ids[:, 1:], batch["next_ids"][:, None]], dim=1)
        self.bare(ids, targets)
        self.theirs.append(time.process_time() - begin)
        self._resumed = time.process_time()


def prepared(
    settings: TrainSettings, plan: CallPlan, module: nn.Module, T: int, view: QuietView
) -> tuple[Text, Effective]:
    """The text in blocks of T and the derived settings of a run on the CPU, one block of which is evaluated."""
    text = prepare_text(settings, plan, module, T, plan.objective, view=view)
    effective, _ = derive(
        settings,
        module,
        plan,
        batches_per_epoch=text.train_batches,
        val_blocks=text.val_blocks,
        max_length=T,
        precision="32",
        device=torch.device("cpu"),
    )
    text.limit_evaluation(1)
    return text, effective


def train(
    module: nn.Module, bare: BareLoop | None, steps: int, T: int, B: int, folder: Path, data: str
) -> tuple[list[float], list[float], list[Tensor]]:
    """Train ``steps`` steps; returns the CPU seconds of each, those of the bare loop beside it, and the losses."""
    plan = infer_call_plan(module)
    view = QuietView()
    settings = TrainSettings(
        data=data,
        max_steps=steps,
        batch_size=B,
        learning_rate=LEARNING_RATE,
        warmup_steps=WARMUP_STEPS,
        min_lr_ratio=1.0,  # constant after the warm-up, so that the bare loop needs no cosine
        precision="32",
        eval_every=steps,
    )
    with quiet_lightning():
        text, effective = prepared(settings, plan, module, T, view)
        adapter = UniversalModelAdapter(
            module,
            effective.learning_rate,
            warmup_steps=effective.warmup_steps,
            weight_decay=0.1,
            call_plan=plan,
            min_lr_ratio=settings.min_lr_ratio,
            total_steps=effective.total_steps,
        )
        fit = build_trainer(RunDirectory.create(folder, "bench"), settings, effective, None, view, resume_from=None)
        alternate = Alternate(bare)
        # the last callback: checkpointing and logging of a step count as ours
        fit.trainer.callbacks.append(alternate)
        fit.trainer.fit(adapter, datamodule=text.datamodule)
    return alternate.ours, alternate.theirs, alternate.our_losses

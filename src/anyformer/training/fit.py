"""Lightning's trainer as a run needs it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

from anyformer.core.durations import seconds_of
from anyformer.core.protocols import View
from anyformer.core.settings import TrainSettings
from anyformer.models.callplan import CallPlan
from anyformer.runs.background import BackgroundCheckpointIO
from anyformer.runs.checkpoints import DirectoryCheckpointIO, step_of
from anyformer.runs.directory import RunDirectory
from anyformer.runs.metrics import CsvMetrics
from anyformer.training.adapter import UniversalModelAdapter
from anyformer.training.badsteps import BadSteps
from anyformer.training.blocks import BlockPath
from anyformer.training.callbacks import (
    EarlyStop,
    EndAt,
    EvaluateEvery,
    KeepRandomState,
    SampleText,
    ShowProgress,
)
from anyformer.training.effective import Effective
from anyformer.training.intime import Budget, SaveInTime, StopInTime
from anyformer.training.microbatch import MicroBatch
from anyformer.training.performance import LogRows
from anyformer.training.precision import LIGHTNING_NAMES
from anyformer.training.samples import SampleWriter
from anyformer.training.saving import RunCheckpoint
from anyformer.training.stopping import StopOnSignal
from anyformer.training.team import Team
from anyformer.training.text import Text

_HOOKS_OF_A_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
ACCELERATORS = {"cuda": "gpu", "mps": "mps", "cpu": "cpu"}


class _Unprofiled(PassThroughProfiler):
    """Lightning enters a profiler's context around each hook of each callback, some 80 times a step.

    Its own that does nothing builds a generator each time: benchmarks/results/train_loop.md has what that costs.
    """

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return self._nothing


@dataclass(frozen=True)
class Fit:
    """A trainer and the callbacks that are asked afterwards."""

    trainer: pl.Trainer
    checkpoint: RunCheckpoint
    progress: ShowProgress
    stop: StopOnSignal
    in_time: StopInTime | None
    """None where the run may take as long as it wants."""


def build_adapter(
    run: RunDirectory,
    module: nn.Module,
    plan: CallPlan,
    text: Text,
    settings: TrainSettings,
    effective: Effective,
    view: View,
    *,
    writes: bool = True,
) -> UniversalModelAdapter:
    """The module as Lightning trains it, its promises proven a moment ago. writes: bad batches, into the run."""
    adapter = UniversalModelAdapter(
        module,
        effective.learning_rate,
        warmup_steps=effective.warmup_steps,
        weight_decay=effective.weight_decay,
        optimizer=settings.optimizer,
        schedule=settings.schedule,
        tokenizer=text.tokenizer,
        call_plan=plan,
        label_smoothing=settings.label_smoothing,
        betas=(settings.beta1, settings.beta2),
        min_lr_ratio=settings.min_lr_ratio,
        total_steps=effective.total_steps,
        objective=text.objective,
        seed=settings.seed,
        _proven=True,
    )
    adapter.proven = True  # on the same kind of batch
    # the batches of a foreign data module are as large as it makes them
    fewer = effective.micro_batch if effective.micro_batch < settings.sequences else None
    adapter.micro = MicroBatch(fewer, view.finding)
    adapter.loss_path.blocks = BlockPath(checkpointing=settings.activation_checkpointing, compiling=settings.compile)
    adapter.loss_path.blocks.told = view.finding
    adapter.bad_steps = BadSteps(
        skip=settings.bad_steps == "skip",
        sigma=settings.spike_sigma,
        folder=run.path / "bad_batches" if writes else None,
        tokenizer=text.tokenizer,
        view=view,
    )
    return adapter


def build_trainer(
    run: RunDirectory,
    settings: TrainSettings,
    effective: Effective,
    writer: SampleWriter | None,
    view: View,
    *,
    resume_from: Path | None,
    budget: Budget | None = None,
    held_out_blocks: int = 0,
    on_saved: Callable[[Path], None] | None = None,
    ends_at: int | None = None,
    on_row: Callable[[int, dict[str, float]], None] | None = None,
    team: Team | None = None,
    unused: bool = False,
) -> Fit:
    """The trainer of one run; ``resume_from`` is the checkpoint it will go on from.

    held_out_blocks: what will be measured at the end, which a run with a budget leaves time for.
    on_saved: told of each checkpoint that is complete, in the thread that wrote it. on_row: gets each row of metrics
    that is complete. ends_at: a step to end after, of a run whose schedule is longer.
    team: the processes that train together, each on its own device; alone where not given. unused: whether the model
    has parameters that take no part in the loss.
    """
    team = team or Team()
    last = min(effective.total_steps, ends_at or effective.total_steps)
    background = BackgroundCheckpointIO(DirectoryCheckpointIO(run.manifest.get("id"), on_saved))
    checkpoint = RunCheckpoint(run.checkpoints.resolve(), settings.save_top_k, background=background)
    progress = ShowProgress(view, last)
    stop = StopOnSignal(checkpoint, view)
    callbacks: list[pl.Callback] = [progress, LogRows(progress, effective.precision)]
    callbacks += [EvaluateEvery(effective.eval_every), EndAt(last), KeepRandomState(shared=team.size > 1)]
    samples = SampleText(effective.total_steps, writer) if writer is not None else None
    if samples is not None:
        callbacks.append(samples)
    if settings.early_stopping_patience is not None:
        patience = settings.early_stopping_patience
        callbacks.append(EarlyStop("val_loss", patience=patience, mode="min", check_on_train_epoch_end=False))
    callbacks += [checkpoint, stop]  # last: what the others changed in a step is saved with it
    if settings.save_every != "never":
        callbacks.append(SaveInTime(checkpoint, seconds_of(settings.save_every, "save_every")))
    in_time = None
    if budget is not None:
        in_time = StopInTime(budget, checkpoint, samples, effective, held_out_blocks, settings.sequences)
        callbacks.append(in_time)
    metrics = None
    if team.leads:
        metrics = CsvMetrics(run.path, resume_from=step_of(resume_from) if resume_from is not None else None)
    for callback in callbacks:
        _leave_out_idle_hooks(callback)
    environment = [team.environment()] if team.size > 1 else []
    trainer = pl.Trainer(
        accelerator=ACCELERATORS[effective.device],
        devices=team.place.local_size,
        num_nodes=team.place.nodes,
        strategy=_strategy(settings, team, unused),
        precision=LIGHTNING_NAMES[effective.precision],  # type: ignore[arg-type]
        logger=[metrics] if metrics is not None else False,
        callbacks=callbacks,
        profiler=_Unprofiled(),
        plugins=[background, *environment],
        max_epochs=-1,
        max_steps=effective.total_steps,
        accumulate_grad_batches=settings.accumulate_grad_batches,
        gradient_clip_val=settings.gradient_clip_val or None,
        val_check_interval=1,  # in batches; EvaluateEvery says which
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=effective.log_every,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # our own sampler shards; Lightning's would shuffle
        default_root_dir=str(run.path),
    )
    if metrics is not None:
        metrics.steps = lambda: int(trainer.global_step)
        metrics.on_row, metrics.saved_step = on_row, lambda: checkpoint.saved_step
    return Fit(trainer, checkpoint, progress, stop, in_time)


def _leave_out_idle_hooks(callback: pl.Callback) -> None:
    """Lightning calls what is callable: of some 80 hooks a step all but a few do nothing, and each costs a name.

    What it saves of a tiny model's step is in benchmarks/results/train_loop.md.
    """
    for name in _HOOKS_OF_A_STEP:
        if getattr(type(callback), name) is getattr(pl.Callback, name):
            setattr(callback, name, None)


def _strategy(settings: TrainSettings, team: Team, unused: bool) -> Any:
    if team.size == 1:
        return "auto"
    return DDPStrategy(find_unused_parameters=unused or settings.strategy.endswith("_true"))


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's advice on workers, devices and intervals: the view says what a user needs."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module=r"pytorch_lightning\..*")
            warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning_fabric\..*")
            warnings.filterwarnings("ignore", message=r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

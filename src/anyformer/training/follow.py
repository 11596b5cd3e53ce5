"""A run as the processes see it that do not lead it: wait, train their part, wait."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from anyformer.core.durations import seconds_of
from anyformer.core.errors import Interrupted
from anyformer.core.settings import TrainSettings
from anyformer.core.view import QuietView
from anyformer.models.callplan import CallPlan
from anyformer.models.objectives import batch_logits
from anyformer.models.probes import preserved_rng
from anyformer.runs.checkpoints import read_weights
from anyformer.runs.directory import RunDirectory
from anyformer.tokenization.load import load_tokenizer
from anyformer.training.coordinator import TrainResult
from anyformer.training.effective import Effective
from anyformer.training.fit import build_adapter, build_trainer, quiet_lightning
from anyformer.training.handover import HandOver
from anyformer.training.intime import Budget, OutOfTime
from anyformer.training.prepare import prepare_text
from anyformer.training.repeatable import repeatable
from anyformer.training.resume import model_of
from anyformer.training.stopping import StopRequested
from anyformer.training.team import Team
from anyformer.training.text import Text


def follow(team: Team, *, module: nn.Module | None = None, dataset: Any = None) -> TrainResult:
    """Train this process' part of the run that the first one leads, and return what came of it.

    module, dataset: as they were given in Python; the rest comes from the run's folder, which every machine must see.
    Raises Ended where another process fails, Interrupted where the run is stopped.
    """
    told = HandOver(**team.wait("prepared"))
    settings, effective = TrainSettings(**told.settings), Effective(**told.effective)
    run = RunDirectory.open(told.run)
    with preserved_rng(), quiet_lightning(), repeatable(settings.deterministic):
        module = model_of(run, module).module
        plan = CallPlan.from_dict(told.plan)
        text = _text(told, settings, effective, plan, module, run, dataset)
        told.require_same(text, team.place.rank)
        _materialise(module, plan, text)
        torch.manual_seed(team.seed(settings.seed))
        adapter = build_adapter(run, module, plan, text, settings, effective, QuietView(), writes=False)
        checkpoint = None if told.checkpoint is None else Path(told.checkpoint)
        budget = None
        if settings.max_time:
            budget = Budget(time.monotonic() - told.elapsed, seconds_of(settings.max_time, "max_time"))
        fit = build_trainer(
            *(run, settings, effective, None, QuietView()),
            resume_from=checkpoint,
            budget=budget,
            held_out_blocks=text.val_blocks,
            team=team,
            unused=told.unused,
        )
        try:
            with fit.stop.listening():
                team.meet("nccl" if effective.device == "cuda" else "gloo")
                with suppress(OutOfTime), team.blaming():
                    fit.trainer.fit(adapter, datamodule=text.datamodule, ckpt_path=checkpoint, weights_only=True)
                results = team.wait("done")
        except (StopRequested, KeyboardInterrupt) as stop:
            error = Interrupted(f"stopped at step {fit.trainer.global_step:,}")
            error.exit_code = 128 + fit.stop.received
            raise error from stop
        adapter.eval().cpu()
        if best := results["best_checkpoint"]:
            adapter.model.load_state_dict(read_weights(run.path / best), strict=True)
    return TrainResult(run.path, results, [], [], fit.trainer, adapter, text.tokenizer)


def _text(
    told: HandOver,
    settings: TrainSettings,
    effective: Effective,
    plan: CallPlan,
    module: nn.Module,
    run: RunDirectory,
    dataset: Any,
) -> Text:
    text = prepare_text(
        *(settings, plan, module, effective.max_length, told.objective),
        dataset=dataset,
        tokenizer=load_tokenizer(run.tokenizer),
        view=QuietView(),
    )
    text.limit_evaluation(effective.eval_blocks)
    if text.pairs is not None:
        text.pairs.exact = told.exact
    return text


def _materialise(module: nn.Module, plan: CallPlan, text: Text) -> None:
    """Parameters that get their shape in the first call: the first process' values are put into them."""
    if any(is_lazy(parameter) for parameter in module.parameters()):
        with torch.no_grad():
            batch_logits(module, plan, text.first_batch())

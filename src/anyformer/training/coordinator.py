"""One run, top to bottom: plan → tokenizer → data → derived settings → fit → evaluate → manifest."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from anyformer.core.durations import seconds_of
from anyformer.core.errors import TrainingError
from anyformer.core.findings import Finding
from anyformer.core.names import default_run_name
from anyformer.core.protocols import View
from anyformer.core.settings import TrainSettings
from anyformer.core.view import PlainView, count
from anyformer.data.module import AdaptiveTokenizerDataModule
from anyformer.models.callplan import CallPlan
from anyformer.models.calls.documents import separate_documents
from anyformer.models.plan import Objective
from anyformer.models.planned import naming, planned
from anyformer.models.probes import placed, preserved_rng
from anyformer.models.source import LoadedModel
from anyformer.runs.backup import waited_for
from anyformer.runs.checkpoints import step_of
from anyformer.runs.directory import RunDirectory, require_writable
from anyformer.tokenization.load import load_tokenizer
from anyformer.training.adapter import UniversalModelAdapter
from anyformer.training.autobatch import first_rows
from anyformer.training.backups import begin_backup, end_backup, require_backup
from anyformer.training.effective import Effective, choose_device, choose_max_length, derive
from anyformer.training.ending import interrupted, judge, paused
from anyformer.training.fit import build_adapter, build_trainer, quiet_lightning
from anyformer.training.handover import HandOver, leaves_out
from anyformer.training.intime import Budget, OutOfTime
from anyformer.training.objective import asked, proofs_on_batch, require_trainable
from anyformer.training.precision import choose_precision
from anyformer.training.prepare import prepare_text, settings_of_module
from anyformer.training.record import begin_run, new_run, rebuilds, recorded_end
from anyformer.training.repeatable import repeatable
from anyformer.training.resume import (
    ResumePoint,
    goes_on,
    resume_point,
    run_of,
    same_data,
    same_precision,
    with_own_place,
)
from anyformer.training.samples import require_prompt, sample_writer
from anyformer.training.stopping import StopRequested
from anyformer.training.streams import stream_end
from anyformer.training.team import Team
from anyformer.training.text import Text
from anyformer.training.tracked import require_trackers, tracked


@dataclass(frozen=True)
class Replay:
    """A run that is to be trained anew, from its beginning."""

    run: RunDirectory
    steps: int
    """How many of its steps; its schedule stays as long as it was."""


Checked = Callable[[LoadedModel, CallPlan, View], list[Finding]]
"""Looks at a model and the way it is called, and says what it found; raises where that blocks training."""


@dataclass(frozen=True)
class TrainResult:
    """What came of a run."""

    run_path: Path
    results: dict[str, Any]
    """The figures as run.json holds them under "results"."""
    findings: list[Finding]
    samples: list[dict[str, str]]
    """The last samples: prompt and text."""
    trainer: pl.Trainer
    adapter: UniversalModelAdapter
    """The model with its best weights, in eval mode, on the CPU."""
    tokenizer: Any
    report_path: Path | None = None


def run_training(
    loaded: LoadedModel,
    settings: TrainSettings,
    *,
    dataset: Any = None,
    tokenizer: Any = None,
    datamodule: pl.LightningDataModule | None = None,
    view: View | None = None,
    command: str = "",
    finished_ok: bool = False,
    replay: Replay | None = None,
    team: Team | None = None,
    checked: Checked | None = None,
) -> TrainResult:
    """Train a loaded model as the settings say and leave a run directory behind.

    dataset: a Dataset or list of texts instead of ``settings.data``. tokenizer, datamodule: used as they are.
    checked: what looks at a new run's model before its text is read, and may raise.
    finished_ok: resuming a finished run measures it anew instead of being refused.
    replay: the run that is trained anew, on the same text, and how many of its steps. team: the processes that train
    together, of which this is the first; alone where not given.
    Raises an AnyformerError that says what to do; whatever was trained until then is saved.
    """
    began = time.monotonic()
    view, team = view or PlainView(), team or Team()
    if isinstance(datamodule, AdaptiveTokenizerDataModule):
        settings = settings_of_module(settings, datamodule)
    with preserved_rng(), quiet_lightning(), repeatable(settings.deterministic), ExitStack() as held:
        plan, objective, chosen = _plan(loaded, settings, view)
        if checked is not None and settings.resume is None:
            chosen += checked(loaded, plan, view)
        device = choose_device(settings.use_gpu)
        max_length, notes = choose_max_length(settings.max_length, plan)
        settings, resumed = _allowed(settings, max_length, held, view)
        text = prepare_text(
            settings,
            plan,
            loaded.module,
            max_length,
            objective,
            dataset=dataset,
            tokenizer=load_tokenizer(resumed.run.tokenizer) if resumed else tokenizer,
            datamodule=datamodule,
            model=loaded.provenance.location if loaded.provenance.kind == "hf" else None,
            view=view,
        )
        if (before := resumed or replay) is not None:
            same_data(before.run, text)
        if objective in ("causal", "seq2seq"):
            require_prompt(settings.prompt, text.tokenizer)
        plan, apart = _documents(loaded.module, plan, text, max_length, view)
        proofs = [*apart, *_proven(loaded, plan, text, device, view)]
        effective, why, derived = _derived(settings, loaded, plan, text, max_length, device, resumed, view)
        findings = [*team.notes, *loaded.findings, *plan.findings, *chosen, *proofs, *notes, *text.findings, *derived]
        if resumed is not None:
            run = resumed.run
            findings += [*resumed.findings, *goes_on(resumed, effective, view, finished_ok=finished_ok)]
        else:
            name = settings.name or default_run_name(loaded.provenance.class_name, text.name)
            run = new_run(settings, name, loaded, plan, text)
            held.enter_context(run.locked())
            findings += rebuilds(run, loaded, view)
        ready = _Ready(run, settings, plan, text, device, effective, findings, resumed, began)
        return _from_first_step_to_last(ready, loaded, command, why.reason, replay, team, view)


@dataclass(frozen=True)
class _Ready:
    """What a run knows before its first step."""

    run: RunDirectory
    settings: TrainSettings
    plan: CallPlan
    text: Text
    device: torch.device
    effective: Effective
    findings: list[Finding]
    """Grows with the run."""
    resumed: ResumePoint | None
    began: float
    """As time.monotonic gives it."""


def _allowed(
    settings: TrainSettings, max_length: int, held: ExitStack, view: View
) -> tuple[TrainSettings, ResumePoint | None]:
    """What would end the run after minutes of reading ends it now; the checkpoint from which it goes on, if it does."""
    if settings.resume is None:
        require_writable(settings.output_dir)
    require_backup(settings)
    require_trackers(settings)
    if settings.resume is None:
        return settings, None
    held.enter_context(run_of(settings.resume).locked())  # before anything of it is set aside
    resumed = resume_point(settings, max_length, view)
    return with_own_place(settings, resumed.run), resumed


def _derived(
    settings: TrainSettings,
    loaded: LoadedModel,
    plan: CallPlan,
    text: Text,
    max_length: int,
    device: torch.device,
    resumed: ResumePoint | None,
    view: View,
) -> tuple[Effective, Finding, list[Finding]]:
    """What the settings leave open, why this precision, and all such findings; how much is evaluated is set."""
    kept = same_precision(resumed.run, settings.precision, device) if resumed else None
    precision, why = kept or choose_precision(settings.precision, loaded.module, plan, text.first_batch(), device)
    begun = resumed.run.manifest.get("effective", {}) if resumed else {}
    micro, tried = first_rows(settings, loaded.module, plan, text, precision, device, view, begun)
    effective, derived = derive(
        settings,
        loaded.module,
        plan,
        batches_per_epoch=text.train_batches,
        micro_batch=micro,
        val_blocks=text.val_blocks,
        max_length=max_length,
        precision=precision,
        device=device,
    )
    text.limit_evaluation(effective.eval_blocks)
    return effective, why, [why, *tried, *derived]


def _from_first_step_to_last(
    ready: _Ready,
    loaded: LoadedModel,
    command: str,
    precision_reason: str,
    replay: Replay | None,
    team: Team,
    view: View,
) -> TrainResult:
    """Write the manifest, train, and record how it ended, however it ends."""
    run, settings, resumed, effective = ready.run, ready.settings, ready.resumed, ready.effective
    since = time.monotonic() - (run.manifest.get("seconds") or 0.0)
    with ExitStack() as copied, recorded_end(run, since):  # the end is written before its copy is waited for
        backup = begin_backup(run, settings, resumed, view)
        told = partial(end_backup, run, ready.findings, view)
        copied.enter_context(waited_for(backup, told, in_time=settings.max_time is not None))
        begin_run(run, loaded, settings, effective, ready.findings, command, resumed)
        view.stage(
            "run", str(run.path), f"{effective.total_steps:,} steps in {effective.precision}: {precision_reason}"
        )
        unused = team.size > 1 and leaves_out(loaded.module, ready.plan, ready.text, ready.device, ready.findings)
        point = resumed.checkpoint if resumed is not None else None
        spent = time.monotonic() - ready.began
        order = HandOver.of(run, settings, ready.plan, ready.text, effective, point, spent, unused)
        team.tell("prepared", order.to_dict())
        with tracked(run, settings, effective, ready.findings, resumed, view) as trackers, team.blaming():
            return _fit_and_judge(
                ready,
                loaded.module,
                on_saved=backup.offer if backup is not None else None,
                on_row=trackers.offer,
                ends_at=replay.steps if replay is not None else None,
                view=view,
                team=team,
                unused=unused,
            )


def _proven(loaded: LoadedModel, plan: CallPlan, text: Text, device: torch.device, view: View) -> list[Finding]:
    """The plan's promises on the first training batch; what is not proven is shown."""
    batch = {name: value.to(device) for name, value in text.first_batch().items() if isinstance(value, torch.Tensor)}
    with placed(loaded.module, device):
        proofs = proofs_on_batch(loaded.module, plan, text.objective, batch)
    for finding in proofs:
        if finding.verdict != "ok":
            view.finding(finding)
    return proofs


def _documents(
    module: nn.Module, plan: CallPlan, text: Text, max_length: int, view: View
) -> tuple[CallPlan, list[Finding]]:
    """The plan that keeps documents of one block apart, where there are several and the module can be told."""
    if text.document_end is None:
        return plan, []
    plan, finding = separate_documents(module, plan, text.document_end, max_length)
    if finding.verdict != "ok":
        view.finding(finding)
    return plan, [finding]


def _plan(loaded: LoadedModel, settings: TrainSettings, view: View) -> tuple[CallPlan, Objective, list[Finding]]:
    view.status("finding the way to call the model")
    begin = time.monotonic()
    with naming(loaded):
        plan = planned(loaded.module, overrides=loaded.overrides, objective=asked(settings.objective))
        objective, findings = require_trainable(plan, settings.objective)
    proven = sum(finding.verdict == "ok" for finding in plan.findings)
    size = sum(parameter.numel() for parameter in loaded.module.parameters())
    value = f"{loaded.provenance.class_name}   {count(size)} parameters · {plan.family}"
    view.stage("model", value, f"✓ called right ({proven} proofs, {time.monotonic() - begin:.1f} s)")
    if not loaded.module.training:
        why = "dropout works in training mode alone"
        findings.append(Finding("mode", "note", "given in eval mode, trained in training mode", reason=why))
    for finding in (*loaded.findings, *plan.findings):
        if finding.verdict == "warn":
            view.finding(finding)  # what was made up to build it, what is odd about its call
    for finding in findings:
        if finding.verdict == "warn" or objective != "causal":
            view.finding(finding)
    return plan, objective, findings


def _fit_and_judge(
    ready: _Ready,
    module: nn.Module,
    *,
    on_saved: Callable[[Path], None] | None,
    ends_at: int | None,
    on_row: Callable[[int, dict[str, float]], None],
    view: View,
    team: Team,
    unused: bool,
) -> TrainResult:
    """Train, put the best weights in place, measure and sample."""
    run, settings, plan, text = ready.run, ready.settings, ready.plan, ready.text
    effective, findings = ready.effective, ready.findings
    begin = time.monotonic()
    torch.manual_seed(settings.seed)
    adapter = build_adapter(run, module, plan, text, settings, effective, view)
    adapter.micro.told = adapter.loss_path.blocks.told = partial(_found, run, adapter, findings, view)
    writer = sample_writer(run, module, plan, text, settings, effective.max_length)
    checkpoint = ready.resumed.checkpoint if ready.resumed else None
    fit = build_trainer(
        run,
        settings,
        effective,
        writer,
        view,
        resume_from=checkpoint,
        budget=Budget(ready.began, seconds_of(settings.max_time, "max_time")) if settings.max_time else None,
        held_out_blocks=text.val_blocks,
        on_saved=on_saved,
        ends_at=ends_at,
        on_row=on_row,
        team=team,
        unused=unused,
    )
    out_of_time = False
    try:
        with fit.stop.listening():
            team.meet("nccl" if effective.device == "cuda" else "gloo")
            try:
                fit.trainer.fit(adapter, datamodule=text.datamodule, ckpt_path=checkpoint, weights_only=True)
            except OutOfTime:
                out_of_time = True
                findings.append(paused(run, fit, str(settings.max_time), view))
            finally:  # a signal or an error, too: what was skipped and chosen until then is part of its story
                findings += [*stream_end(text.datamodule), *adapter.bad_steps.findings(), *fit.checkpoint.findings()]
                findings += adapter.loss_path.findings
                with suppress(TrainingError):  # a full disk: what ended the run matters more
                    run.update(findings=[finding.to_dict() for finding in findings])
            results = judge(run, fit, adapter, text, effective, findings, view)
            early = not out_of_time and results["steps"] < effective.total_steps
            results |= {"out_of_time": out_of_time, "stopped_early": early}
            if writer is not None and not out_of_time:  # a resumed run writes its own
                view.status("writing samples")
                best = results["best_checkpoint"]
                writer(step_of(Path(best)) if best else results["steps"])  # whose weights are in place
            run.update(results=results, findings=[finding.to_dict() for finding in findings])
            team.tell("done", results)
    except (StopRequested, KeyboardInterrupt) as stop:
        raise interrupted(run, fit, begin) from stop
    return TrainResult(
        run.path, results, findings, writer.latest if writer else [], fit.trainer, adapter, text.tokenizer
    )


def _found(
    run: RunDirectory, adapter: UniversalModelAdapter, findings: list[Finding], view: View, finding: Finding
) -> None:
    """Something was decided on a batch: said, and written down at once."""
    view.finding(finding)
    findings.append(finding)
    effective = run.manifest["effective"] | adapter.loss_path.blocks.effective()
    if adapter.micro.rows is not None:
        effective["micro_batch"] = adapter.micro.rows
    run.update(effective=effective, findings=[finding.to_dict() for finding in findings])

"""How a run ends: its best weights measured, or paused or stopped with what is needed to go on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from anyformer.core.errors import CorruptCheckpoint, Interrupted
from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.core.view import duration
from anyformer.runs.checkpoints import list_checkpoints, read_weights, step_of
from anyformer.runs.directory import RunDirectory
from anyformer.training.adapter import UniversalModelAdapter
from anyformer.training.effective import Effective
from anyformer.training.fit import Fit
from anyformer.training.measure import measure
from anyformer.training.text import Text


def judge(
    run: RunDirectory,
    fit: Fit,
    adapter: UniversalModelAdapter,
    text: Text,
    effective: Effective,
    findings: list[Finding],
    view: View,
) -> dict[str, Any]:
    """Put the best weights into the model and measure them on all of the held-out text."""
    last = fit.trainer.global_step
    best = _restore_best(fit, adapter, last, findings)
    results: dict[str, Any] = {
        "objective": text.objective,
        "steps": last,
        "best_checkpoint": f"{run.checkpoints.name}/{best.name}" if best else None,
        "tokens_per_second": fit.progress.tokens_per_second,
        "train_seconds": fit.progress.train_seconds,
    }
    score = fit.checkpoint.best_model_score
    if fit.in_time is not None and (needed := fit.in_time.measuring_seconds()) > fit.in_time.budget.left:
        reason = f"about {duration(needed)} are needed, more than is left: anyformer evaluate {run.path}"
        findings.append(Finding("held-out text", "warn", "not measured as a whole", reason=reason))
        view.finding(findings[-1])
        adapter.eval().cpu()
        return {**results, "val_loss": None if best is None or score is None else float(score)}
    view.status("measuring the held-out loss")
    measured = measure(
        adapter.model,
        adapter.call_plan,
        text,
        block_size=effective.max_length,
        batch_size=adapter.micro.rows or effective.micro_batch,
        device=torch.device(effective.device),
        last_loss=None if score is None else float(score),
        view=view,
    )
    adapter.eval().cpu()
    if unknown := measured.get("unknown_share"):
        reason = "bits per byte would leave out what is not written, so none are given"
        findings.append(Finding("unknown text", "warn", f"{unknown:.2%} of the held-out tokens", "0 %", reason))
    return {**results, **measured}


def _restore_best(fit: Fit, adapter: UniversalModelAdapter, last: int, findings: list[Finding]) -> Path | None:
    """Put the weights with the lowest held-out loss into the model; returns their checkpoint.

    The next best where one was damaged since it was saved.
    """
    best = fit.checkpoint.best_k_models
    for path in sorted(best, key=lambda path: float(best[path])):
        folder = Path(path)
        if step_of(folder) == last:
            return folder  # they are in place
        try:
            weights = read_weights(folder)
        except CorruptCheckpoint as error:
            findings.append(Finding("checkpoint", "warn", error.what, reason="the next best weights are used"))
            continue
        adapter.model.load_state_dict(weights, strict=True)
        reason = f"its held-out loss was lower than that of the last step, {last:,}"
        findings.append(Finding("weights", "note", f"of step {step_of(folder):,}", reason=reason))
        return folder
    return None


def paused(run: RunDirectory, fit: Fit, max_time: str, view: View) -> Finding:
    """That its time is over, and how it goes on; shown."""
    where = f"paused at step {fit.trainer.global_step:,} of {fit.progress.total_steps:,}"
    finding = Finding("max_time", "note", where, max_time, f"to go on: anyformer train --resume {run.path}")
    view.finding(finding)
    return finding


def interrupted(run: RunDirectory, fit: Fit, begin: float) -> Interrupted:
    """What a signal ended, what of it is saved, and a shell's exit code. begin: as time.monotonic gives it."""
    step, total = fit.trainer.global_step, fit.progress.total_steps
    what = f"stopped at step {step:,} of {total:,} after {duration(time.monotonic() - begin)}"
    kept = list_checkpoints(run.path)
    if not kept:
        stop = Interrupted(what, "nothing was saved yet: there is nothing to resume", "start it anew")
    else:
        saved = f"saved as {kept[0]}"
        if step_of(kept[0]) != step:
            saved = f"this step is not saved; the newest checkpoint is of step {step_of(kept[0]):,}"
        stop = Interrupted(what, saved, f"anyformer train --resume {run.path}")
    stop.exit_code = 128 + fit.stop.received  # as shells report a signal
    return stop

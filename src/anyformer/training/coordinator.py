"""One run, top to bottom: plan → tokenizer → data → derived settings → fit → evaluate → manifest."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from anyformer.core.errors import AnyformerError, CorruptCheckpoint, Interrupted, TrainingError
from anyformer.core.findings import Finding
from anyformer.core.names import default_run_name
from anyformer.core.protocols import View
from anyformer.core.settings import TrainSettings
from anyformer.core.view import PlainView, count, duration
from anyformer.evaluation.scoring import score_tokens
from anyformer.models.callplan import CallPlan, infer_call_plan
from anyformer.models.probes import preserved_rng
from anyformer.models.source import LoadedModel
from anyformer.runs.checkpoints import list_checkpoints, read_weights, step_of
from anyformer.runs.directory import RunDirectory, now, require_writable, unwritable
from anyformer.tokenization.load import load_tokenizer
from anyformer.training.adapter import UniversalModelAdapter, require_trainable
from anyformer.training.callbacks import StopRequested
from anyformer.training.effective import Effective, choose_device, choose_max_length, derive
from anyformer.training.fit import Fit, build_trainer, quiet_lightning
from anyformer.training.precision import choose_precision
from anyformer.training.resume import ResumePoint, goes_on, resume_point, same_data, same_precision
from anyformer.training.samples import SampleWriter, choose_prompts, require_prompt
from anyformer.training.text import Text, prepare_text, text_facts


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
) -> TrainResult:
    """Train a loaded model as the settings say and leave a run directory behind.

    dataset: a Dataset or list of texts instead of ``settings.data``. tokenizer, datamodule: used as they are.
    finished_ok: resuming a finished run measures it anew instead of being refused.
    Raises an AnyformerError that says what to do; whatever was trained until then is saved.
    """
    view = view or PlainView()
    with preserved_rng(), quiet_lightning():
        plan = _plan(loaded, view)
        device = choose_device(settings.use_gpu)
        max_length, notes = choose_max_length(settings.max_length, plan)
        if settings.resume is None:
            require_writable(settings.output_dir)  # before minutes of reading
        resumed = resume_point(settings, max_length, view) if settings.resume else None
        text = prepare_text(
            settings,
            plan,
            max_length,
            dataset=dataset,
            tokenizer=load_tokenizer(resumed.run.tokenizer) if resumed else tokenizer,
            datamodule=datamodule,
            view=view,
        )
        if resumed is not None:
            same_data(resumed.run, text)
        require_prompt(settings.prompt, text.tokenizer)
        kept = same_precision(resumed.run, settings.precision, device) if resumed else None
        precision, why = kept or choose_precision(settings.precision, loaded.module, plan, text.first_ids(), device)
        effective, derived = derive(
            settings,
            loaded.module,
            plan,
            batches_per_epoch=text.train_batches,
            val_blocks=text.val_blocks,
            max_length=max_length,
            precision=precision,
            device=device,
        )
        text.limit_evaluation(effective.eval_blocks)
        findings = [*loaded.findings, *plan.findings, *notes, *text.findings, why, *derived]
        if resumed is not None:
            run, findings = (
                resumed.run,
                [*findings, *resumed.findings, *goes_on(resumed, effective, view, finished_ok=finished_ok)],
            )
        else:
            name = settings.name or default_run_name(loaded.provenance.class_name, text.name)
            run = _new_run(settings, name, loaded, plan, text)
        with _recorded_end(run, time.monotonic() - (run.manifest.get("seconds") or 0.0)):
            _begin(run, settings, effective, findings, command)
            view.stage("run", str(run.path), f"{effective.total_steps:,} steps in {precision}: {why.reason}")
            return _fit_and_judge(run, loaded.module, plan, text, settings, effective, findings, resumed, view)


def _plan(loaded: LoadedModel, view: View) -> CallPlan:
    view.status("finding the way to call the model")
    begin = time.monotonic()
    plan = infer_call_plan(loaded.module)
    require_trainable(plan)
    proven = sum(finding.verdict == "ok" for finding in plan.findings)
    size = sum(parameter.numel() for parameter in loaded.module.parameters())
    value = f"{loaded.provenance.class_name}   {count(size)} parameters · {plan.family}"
    view.stage("model", value, f"✓ called right ({proven} proofs, {time.monotonic() - begin:.1f} s)")
    return plan


def _new_run(settings: TrainSettings, name: str, loaded: LoadedModel, plan: CallPlan, text: Text) -> RunDirectory:
    """A run directory with all that a run needs to be rebuilt; none at all where that cannot be written."""
    run = RunDirectory.create(settings.output_dir, name)
    try:
        _store(run, loaded, plan, text)
    except BaseException as error:
        shutil.rmtree(run.path, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, AnyformerError):
            raise unwritable(run.path, error) from error
        raise
    return run


def _store(run: RunDirectory, loaded: LoadedModel, plan: CallPlan, text: Text) -> None:
    run.store_sources(loaded)
    if text.tokenizer is not None:
        text.tokenizer.save_pretrained(run.tokenizer)
    provenance = loaded.provenance
    run.update(
        model={
            **provenance.to_dict(),
            "parameters": sum(parameter.numel() for parameter in loaded.module.parameters()),
            "example": provenance.kind == "example",
        },
        call_plan=plan.to_dict(),
        **text_facts(text),
    )


def _begin(
    run: RunDirectory, settings: TrainSettings, effective: Effective, findings: list[Finding], command: str
) -> None:
    lasting = replace(settings, resume=None)  # for --config and for the next --resume
    run.write_settings(lasting.to_dict())
    run.update(
        state="running",
        finished=None,
        error=None,
        command=command or run.manifest.get("command", ""),
        seed=settings.seed,
        settings=lasting.to_dict(),
        effective=effective.to_dict(),
        findings=[finding.to_dict() for finding in findings],
    )


@contextmanager
def _recorded_end(run: RunDirectory, begin: float) -> Iterator[None]:
    """However a run ends, its manifest says so; an error of training also says what is kept.

    begin: when it would have begun, had it not been interrupted (``time.monotonic``).
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        told = (
            stop
            if isinstance(stop, Interrupted)
            else Interrupted("stopped", fix=f"anyformer train --resume {run.path}")
        )
        run.update(state="interrupted", finished=now(), seconds=time.monotonic() - begin, error=str(told))
        raise told from stop
    except Exception as error:
        problem = _with_last_checkpoint(error, run)
        with suppress(TrainingError):  # a full disk: the reason that is raised matters more than its record
            run.update(state="failed", finished=now(), seconds=time.monotonic() - begin, error=str(problem))
        if problem is error:
            raise
        raise problem from error
    run.update(state="finished", finished=now(), seconds=time.monotonic() - begin)


def _fit_and_judge(
    run: RunDirectory,
    module: nn.Module,
    plan: CallPlan,
    text: Text,
    settings: TrainSettings,
    effective: Effective,
    findings: list[Finding],
    resumed: ResumePoint | None,
    view: View,
) -> TrainResult:
    """Train, put the best weights in place, measure and sample."""
    begin = time.monotonic()
    torch.manual_seed(settings.seed)
    adapter = UniversalModelAdapter(
        module,
        effective.learning_rate,
        warmup_steps=effective.warmup_steps,
        weight_decay=settings.weight_decay,
        tokenizer=text.tokenizer,
        call_plan=plan,
        label_smoothing=settings.label_smoothing,
        betas=(settings.beta1, settings.beta2),
        min_lr_ratio=settings.min_lr_ratio,
        total_steps=effective.total_steps,
    )
    prompts = choose_prompts(settings.prompt, text.held_out, text.tokenizer, effective.max_length)
    writer = SampleWriter(run, module, plan, text.tokenizer, prompts, settings.seed) if text.tokenizer else None
    checkpoint = resumed.checkpoint if resumed else None
    fit = build_trainer(run, settings, effective, writer, view, resume_from=checkpoint)
    try:
        with fit.stop.listening():
            fit.trainer.fit(adapter, datamodule=text.datamodule, ckpt_path=checkpoint, weights_only=True)
        results = _judge(run, fit, adapter, text, effective, settings.batch_size, findings, view)
        if writer is not None:
            view.status("writing samples")
            writer(fit.trainer.global_step)
    except (StopRequested, KeyboardInterrupt) as stop:
        raise _interrupted(run, fit, begin) from stop
    run.update(results=results, findings=[finding.to_dict() for finding in findings])
    return TrainResult(
        run.path, results, findings, writer.latest if writer else [], fit.trainer, adapter, text.tokenizer
    )


def _judge(
    run: RunDirectory,
    fit: Fit,
    adapter: UniversalModelAdapter,
    text: Text,
    effective: Effective,
    batch_size: int,
    findings: list[Finding],
    view: View,
) -> dict[str, Any]:
    """Put the best weights into the model and measure them on all of the held-out text."""
    last = fit.trainer.global_step
    best = _restore_best(fit, adapter, last, findings)
    results: dict[str, Any] = {
        "steps": last,
        "best_checkpoint": f"{run.checkpoints.name}/{best.name}" if best else None,
        "tokens_per_second": fit.progress.tokens_per_second,
        "train_seconds": fit.progress.train_seconds,
        "stopped_early": last < effective.total_steps,
    }
    if text.held_out is None:
        adapter.eval().cpu()
        score = fit.checkpoint.best_model_score
        loss = None if score is None else float(score)
        return {**results, "val_loss": loss, "perplexity": None if loss is None else math.exp(min(loss, 700.0))}
    view.status("measuring the held-out loss")
    scores = score_tokens(
        adapter.model,
        adapter.call_plan,
        text.held_out,
        block_size=effective.max_length,
        batch_size=batch_size,
        device=torch.device(effective.device),
        bytes_total=text.held_out_bytes,
        view=view,
    )
    adapter.eval().cpu()
    return {
        **results,
        "val_loss": scores.loss,
        "perplexity": scores.perplexity,
        "bits_per_byte": scores.bits_per_byte,
        "unigram_entropy": scores.unigram,
        "bigram_entropy": scores.bigram,
        "beats_bigram": scores.beats_bigram,
        "evaluated_tokens": scores.tokens,
    }


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


def _interrupted(run: RunDirectory, fit: Fit, begin: float) -> Interrupted:
    step, total = fit.trainer.global_step, fit.progress.total_steps
    what = f"stopped at step {step:,} of {total:,} after {duration(time.monotonic() - begin)}"
    kept = list_checkpoints(run.path)
    if not kept:
        return Interrupted(what, "nothing was saved yet: there is nothing to resume", "start it anew")
    if step_of(kept[0]) == step:
        saved = f"saved as {kept[0]}"
    else:
        saved = f"this step is not saved; the newest checkpoint is of step {step_of(kept[0]):,}"
    return Interrupted(what, saved, f"anyformer train --resume {run.path}")


def _with_last_checkpoint(error: Exception, run: RunDirectory) -> Exception:
    """A training error that also says what is kept; other errors stay as they are."""
    if not isinstance(error, TrainingError):
        return error
    kept = list_checkpoints(run.path)
    last = f"the last good checkpoint is kept: {kept[0]}" if kept else "no checkpoint was saved yet"
    return type(error)(error.what, f"{error.detail}\n{last}".strip(), error.fix)

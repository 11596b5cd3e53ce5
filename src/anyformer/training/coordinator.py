"""One run, top to bottom: plan → tokenizer → data → derived settings → fit → evaluate → manifest."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from anyformer.core.errors import Interrupted, TrainingError
from anyformer.core.findings import Finding
from anyformer.core.names import default_run_name
from anyformer.core.protocols import View
from anyformer.core.settings import TrainSettings
from anyformer.core.view import PlainView, duration
from anyformer.evaluation.scoring import score_tokens
from anyformer.models.callplan import CallPlan, infer_call_plan
from anyformer.models.probes import preserved_rng
from anyformer.models.source import LoadedModel
from anyformer.runs.checkpoints import read_weights
from anyformer.runs.directory import RunDirectory, now
from anyformer.tokenization.load import load_tokenizer
from anyformer.training.adapter import UniversalModelAdapter, require_trainable
from anyformer.training.callbacks import StopRequested
from anyformer.training.effective import Effective, choose_device, choose_max_length, derive
from anyformer.training.fit import Fit, build_trainer, quiet_lightning
from anyformer.training.precision import choose_precision
from anyformer.training.resume import resume_point, same_data
from anyformer.training.samples import SampleWriter, choose_prompts
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
) -> TrainResult:
    """Train a loaded model as the settings say and leave a run directory behind.

    dataset: a Dataset or list of texts instead of ``settings.data``. tokenizer, datamodule: used as they are.
    Raises an AnyformerError that says what to do; whatever was trained until then is saved.
    """
    view = view or PlainView()
    with preserved_rng(), quiet_lightning():
        plan = _plan(loaded, view)
        device = choose_device(settings.use_gpu)
        max_length, notes = choose_max_length(settings.max_length, plan)
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
        precision, why = choose_precision(settings.precision, loaded.module, plan, text.first_ids(), device)
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
            run, findings = resumed.run, [*findings, *resumed.findings]
        else:
            name = settings.name or default_run_name(loaded.provenance.class_name, text.name)
            run = RunDirectory.create(settings.output_dir, name)
            _store(run, loaded, plan, text, settings)
        run.update(
            state="running",
            error=None,
            command=command or run.manifest.get("command", ""),
            seed=settings.seed,
            settings=settings.to_dict(),
            effective=effective.to_dict(),
            findings=[finding.to_dict() for finding in findings],
        )
        view.stage("run", str(run.path), f"{precision} ({why.reason}) · {effective.total_steps:,} steps")
        checkpoint = resumed.checkpoint if resumed else None
        return _fit_and_judge(run, loaded.module, plan, text, settings, effective, findings, checkpoint, view)


def _plan(loaded: LoadedModel, view: View) -> CallPlan:
    view.status("finding the way to call the model")
    begin = time.monotonic()
    plan = infer_call_plan(loaded.module)
    require_trainable(plan)
    proven = sum(finding.verdict == "ok" for finding in plan.findings)
    size = sum(parameter.numel() for parameter in loaded.module.parameters())
    value = f"{loaded.provenance.class_name}   {size / 1e6:,.1f} M parameters · {plan.family}"
    view.stage("model", value, f"✓ called right ({proven} proofs, {time.monotonic() - begin:.1f} s)")
    return plan


def _store(run: RunDirectory, loaded: LoadedModel, plan: CallPlan, text: Text, settings: TrainSettings) -> None:
    run.write_settings(settings.to_dict())
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


def _fit_and_judge(
    run: RunDirectory,
    module: nn.Module,
    plan: CallPlan,
    text: Text,
    settings: TrainSettings,
    effective: Effective,
    findings: list[Finding],
    checkpoint: Path | None,
    view: View,
) -> TrainResult:
    """Train, put the best weights in place, measure and sample; the manifest says how it ended, whatever happens."""
    begin = time.monotonic() - (run.manifest.get("seconds") or 0.0)
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
    fit = build_trainer(run, settings, effective, writer, view, resume_from=checkpoint)
    try:
        fit.trainer.fit(adapter, datamodule=text.datamodule, ckpt_path=checkpoint, weights_only=True)
        results = _judge(run, fit, adapter, text, effective, settings.batch_size, findings, view)
        if writer is not None:
            view.status("writing samples")
            writer(fit.trainer.global_step)
    except (StopRequested, KeyboardInterrupt) as stop:
        raise _interrupted(run, fit, begin) from stop
    except Exception as error:
        problem = _with_last_checkpoint(error, run)
        run.update(state="failed", finished=now(), seconds=time.monotonic() - begin, error=str(problem))
        if problem is error:
            raise
        raise problem from error
    run.update(
        state="finished",
        finished=now(),
        seconds=time.monotonic() - begin,
        results=results,
        findings=[finding.to_dict() for finding in findings],
    )
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
    best = Path(fit.checkpoint.best_model_path) if fit.checkpoint.best_model_path else None
    best_step = int(best.name.partition("-")[2]) if best else last
    if best is not None and best_step != last:
        adapter.model.load_state_dict(read_weights(best), strict=True)
        reason = f"its held-out loss was lower than that of the last step, {last:,}"
        findings.append(Finding("weights", "note", f"of step {best_step:,}", reason=reason))
    results: dict[str, Any] = {
        "steps": last,
        "best_checkpoint": f"{run.checkpoints.name}/{best.name}" if best else None,
        "tokens_per_second": fit.progress.tokens_per_second,
        "train_seconds": fit.progress.train_seconds,
        "stopped_early": last < effective.total_steps,
    }
    if text.held_out is None:
        score = fit.checkpoint.best_model_score
        return {**results, "val_loss": None if score is None else float(score)}
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


def _interrupted(run: RunDirectory, fit: Fit, begin: float) -> Interrupted:
    run.update(state="interrupted", finished=now(), seconds=time.monotonic() - begin)
    step, total = fit.trainer.global_step, fit.progress.total_steps
    if fit.stop.saved is None and not any(run.checkpoints.iterdir()):
        return Interrupted(f"stopped at step {step:,} of {total:,}, before the first checkpoint: nothing to resume")
    saved = f"saved as {fit.stop.saved}" if fit.stop.saved else "not saved; the newest checkpoint is older"
    return Interrupted(
        f"stopped at step {step:,} of {total:,} after {duration(time.monotonic() - begin)}",
        saved,
        f"anyformer train --resume {run.path}",
    )


def _with_last_checkpoint(error: Exception, run: RunDirectory) -> Exception:
    """A training error that also says what is kept; other errors stay as they are."""
    if not isinstance(error, TrainingError):
        return error
    kept = sorted(path.name for path in run.checkpoints.glob("step-*"))
    last = f"the last good checkpoint is kept: {run.checkpoints / kept[-1]}" if kept else "no checkpoint was saved yet"
    return type(error)(error.what, f"{error.detail}\n{last}".strip(), error.fix)

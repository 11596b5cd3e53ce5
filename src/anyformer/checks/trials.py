"""Tier 3: a training run, benchmark tasks beside what costs nothing, and where a compiler gives up.

Runs are those of ``anyformer train``, of a copy of the module, in a folder that is removed again.
"""

from __future__ import annotations

import copy
import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from anyformer.checks.results import CheckResult, Series
from anyformer.checks.subject import Subject
from anyformer.core.errors import AnyformerError, DataError
from anyformer.core.protocols import Progress, View
from anyformer.core.settings import TrainSettings
from anyformer.core.view import QuietView
from anyformer.models.blame import blame
from anyformer.models.calling import call_logits
from anyformer.models.source import load_model

if TYPE_CHECKING:
    from anyformer.training.coordinator import TrainResult

PERPLEXITY, ACCURACY = "perplexity", "accuracy"
_HUB = {
    "wikitext2": ("hf:wikitext:wikitext-2-raw-v1", PERPLEXITY),
    "sst2": ("hf:glue:sst2", ACCURACY),
    **{task: (f"hf:glue:{task}", ACCURACY) for task in ("cola", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli")},
}


def compiled(subject: Subject) -> CheckResult:
    """How many pieces torch.compile would make of it: at each break it goes back to Python."""
    name, expected = "compile", "one graph"
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append((args, kwargs))

    handle = subject.module.register_forward_pre_hook(keep, with_kwargs=True)
    inputs = subject.batch(0)
    try:
        call_logits(subject.module, subject.plan, inputs.input_ids, target_ids=inputs.target_ids)
    finally:
        handle.remove()
    if not given:
        return CheckResult(name, 3, "n/a", "it is called by its methods, not by forward", expected)
    args, kwargs = given[0]
    torch._dynamo.reset()
    try:
        with _unlogged():
            found = torch._dynamo.explain(subject.module)(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  (the compiler, or a stranger's code in it, may raise anything)
        line, _, words = blame(error).rpartition("\n")
        return CheckResult(name, 3, "note", f"it cannot be compiled: {words[:160]}", expected, "", line)
    finally:
        torch._dynamo.reset()
    reasons = found.break_reasons  # graph_break_count is 0 where nothing is left behind the only break
    if not reasons:
        return CheckResult(name, 3, "ok", f"one graph, {found.op_count} operations", expected)
    first = reasons[0]
    frames = [frame for frame in first.user_stack if "torch" not in Path(frame.filename).parts]
    frame = (frames or first.user_stack)[-1] if first.user_stack else None
    where = "" if frame is None else f"{Path(frame.filename).name}:{frame.lineno}: {(frame.line or '').strip()}"
    measured = f"{len(reasons)} graph break{'s' if len(reasons) > 1 else ''}"
    cause = f"{first.reason.strip().splitlines()[0]}; --compile auto measures whether it is faster all the same"
    return CheckResult(name, 3, "note", measured, expected, cause, where)


@contextmanager
def _unlogged() -> Iterator[None]:
    """The compiler warns of each break in a dozen lines; they are counted here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def fine_tuning(subject: Subject) -> CheckResult:
    """A short run on real text, with its curves."""
    name = "fine-tuning"
    trials = subject.trials
    if trials.data is None and subject.plan.family in ("classifier", "encoder_decoder"):
        need = "texts with labels" if subject.plan.family == "classifier" else "texts to read and to write"
        return CheckResult(name, 3, "n/a", f"it learns from {need}: --data FILE gives them")
    try:
        result, curves = _run(subject, trials.data or "python-stdlib", trials.target_data)
    except DataError as error:
        return CheckResult(name, 3, "n/a", error.what, cause=error.fix)
    except AnyformerError as error:
        return CheckResult(name, 3, "fail", error.what, "it trains", error.detail or error.fix)
    figures = result.results
    baseline, named, better = _baseline(figures)
    reached = _reached(figures)
    measured = f"{reached} after {figures['steps']:,} steps; {named}"
    expected = "better than guessing"
    first, last = curves.rows["training"][0], curves.rows["training"][-1]
    curves = replace(curves, rows={**curves.rows, "a guess": (baseline,)}) if _is_loss(figures) else curves
    if better:
        return CheckResult(name, 3, "ok", measured, expected, series=(curves,))
    if last < first:
        cause = "it learns, and has not had enough steps: --max_steps"
        return CheckResult(name, 3, "note", measured, expected, cause, series=(curves,))
    cause = (
        f"the loss does not fall (from {first:.2f} to {last:.2f} nats): another learning rate, or what is wrong above"
    )
    return CheckResult(name, 3, "warn", measured, expected, cause, series=(curves,))


def benchmark(subject: Subject) -> CheckResult:
    """Benchmark tasks, each trained for some steps, beside guesses that know nothing of the text."""
    name, expected = "benchmark", "better than guessing"
    wanted = ACCURACY if subject.plan.family == "classifier" else PERPLEXITY
    if subject.plan.family == "encoder_decoder":
        return CheckResult(name, 3, "n/a", "the tasks are for models that read one text", expected)
    told, curves, better, tried = [], [], True, 0
    for task, place in subject.trials.tasks.items():
        if task not in _HUB:  # STS-B
            told.append(f"{task}: not tried, its rows have a score and no class")
            continue
        at_hub, kind = _HUB[task]
        if kind != wanted:
            told.append(f"{task}: not tried, it is for {'classifiers' if kind == ACCURACY else 'language models'}")
            continue
        try:
            result, drawn = _run(subject, place or at_hub, None)
        except AnyformerError as error:
            told.append(f"{task}: not tried: {error.what}")
            continue
        tried += 1
        _, named, won = _baseline(result.results)
        told.append(f"{task}: {_reached(result.results)}; {named}")
        curves.append(replace(drawn, name=task))
        better = better and won
    measured = "; ".join(told) or "no task named"
    if not tried:
        return CheckResult(name, 3, "n/a", measured, expected)
    cause = "" if better else f"{subject.trials.steps:,} steps are few: --max_steps"
    return CheckResult(name, 3, "ok" if better else "note", measured, expected, cause, series=tuple(curves))


class _ProgressAlone(QuietView):
    """Of a run within a check nothing is shown but how far it is."""

    def __init__(self, shown: View) -> None:
        self._shown = shown

    def progress(self, progress: Progress) -> None:
        self._shown.progress(progress)


def _run(subject: Subject, data: str, target_data: str | None) -> tuple[TrainResult, Series]:
    """A run of a copy of the module, and its losses."""
    from anyformer.runs.table import FILE, read_metrics  # heavy, like all that trains
    from anyformer.training.coordinator import run_training

    loaded = subject.loaded or load_model(subject.module)
    twin = replace(loaded, module=copy.deepcopy(subject.module))
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        settings = TrainSettings(
            data=data,
            target_data=target_data,
            max_steps=subject.trials.steps,
            output_dir=folder,
            name="check",
            save_every="never",
            save_top_k=1,
            precision="32",
            log_every=max(1, subject.trials.steps // 100),
        )
        result = run_training(twin, settings, view=_ProgressAlone(subject.view))
        rows = read_metrics(result.run_path / FILE)
    losses = [(row["step"], row["train_loss"]) for row in rows if row.get("train_loss") is not None]
    held = [(row["step"], row["val_loss"]) for row in rows if row.get("val_loss") is not None]
    x = tuple(float(step or 0) for step, _ in losses)
    at = dict(held)
    curve = tuple(float(value or 0) for _, value in losses)
    points = tuple(float(at.get(step) or math.nan) for step, _ in losses)
    rows_ = {"training": curve} | ({"held out": points} if any(p == p for p in points) else {})
    return result, Series("line", rows_, x, "", "step", "nats")


def _is_loss(figures: dict[str, Any]) -> bool:
    return figures.get("majority_accuracy") is None


def _reached(figures: dict[str, Any]) -> str:
    if not _is_loss(figures):
        return f"{figures['accuracy']:.1%} right"
    loss, bits = figures["val_loss"], figures.get("bits_per_byte")
    per_byte = "" if bits is None else f", {bits:.2f} bits per byte"
    return f"held-out loss {loss:.2f}, perplexity {math.exp(min(loss, 50)):,.1f} per token{per_byte}"


def _baseline(figures: dict[str, Any]) -> tuple[float, str, bool]:
    """What a guess gets, in words, and whether the model is better."""
    if not _is_loss(figures):
        most = figures.get("majority_accuracy") or 0.0
        return most, f"always the most frequent class {most:.1%}", figures["accuracy"] > most
    single = figures.get("unigram_entropy")
    if single is None:
        return math.inf, "no baseline for this text", True
    return single, f"guessing by single tokens {single:.2f}", figures["val_loss"] < single

"""How a run is begun and ended on the disk: what it needs to be rebuilt, and how it ended, whatever happens."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.nn.parameter import is_lazy

from anyformer.core.errors import AnyformerError, Interrupted, TrainingError
from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.core.settings import TrainSettings
from anyformer.models.callplan import CallPlan
from anyformer.models.source import LoadedModel
from anyformer.runs.checkpoints import list_checkpoints, step_of
from anyformer.runs.directory import RunDirectory, now, unwritable
from anyformer.runs.environment import differences
from anyformer.runs.rebuild import stored_model
from anyformer.training.effective import Effective
from anyformer.training.resume import ResumePoint
from anyformer.training.text import Text, text_facts


def new_run(settings: TrainSettings, name: str, loaded: LoadedModel, plan: CallPlan, text: Text) -> RunDirectory:
    """A run directory with all that a run needs to be rebuilt; none at all where that cannot be written."""
    run = RunDirectory.create(settings.output_dir, name)
    try:
        _store(run, loaded, plan, text, settings.seed)
    except BaseException as error:
        shutil.rmtree(run.path, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, AnyformerError):
            raise unwritable(run.path, error) from error
        raise
    return run


def _store(run: RunDirectory, loaded: LoadedModel, plan: CallPlan, text: Text, seed: int) -> None:
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
        overrides=loaded.overrides,
        objective=text.objective,
        seed=seed,
        **text_facts(text),
    )


def rebuilds(run: RunDirectory, loaded: LoadedModel, view: View) -> list[Finding]:
    """A warning where the run's copy of the source does not give the model again: better known now than after hours."""
    if not loaded.provenance.files:
        return []
    try:
        again = stored_model(run, loaded.provenance).module
        lazy = {name for name, p in again.named_parameters() if is_lazy(p)}  # no shape before the first call
        shapes = [
            {name: None if name in lazy else p.shape for name, p in module.named_parameters()}
            for module in (again, loaded.module)
        ]
        problem = "" if shapes[0] == shapes[1] else "its parameters differ"
    except AnyformerError as error:
        problem = error.what
    if not problem:
        return []
    why = f"evaluate, generate and --resume need it: {problem}; does the model read files beside its source?"
    finding = Finding("rebuild", "warn", "the run's copy of the model cannot be built", reason=why)
    view.finding(finding)
    return [finding]


def begin_run(
    run: RunDirectory,
    loaded: LoadedModel,
    settings: TrainSettings,
    effective: Effective,
    findings: list[Finding],
    command: str,
    resumed: ResumePoint | None = None,
) -> None:
    """Write down what a run or its next part begins with."""
    lasting = replace(settings, resume=None)  # for --config and for the next --resume
    run.write_settings(lasting.to_dict())
    run.update(
        state="running",
        finished=None,
        error=None,
        command=run.manifest.get("command") or command or _command(run, loaded, settings),
        seed=settings.seed,
        settings=lasting.to_dict(),
        effective=effective.to_dict(),
        findings=[finding.to_dict() for finding in findings],
        history=_history(run, **_begun(run, resumed)),
    )


def _history(run: RunDirectory, **event: Any) -> list[dict[str, Any]]:
    """What has happened to the run so far, and one event more."""
    return [*(run.manifest.get("history") or []), {"at": now(), **event}]


def _begun(run: RunDirectory, resumed: ResumePoint | None) -> dict[str, Any]:
    if resumed is None:
        return {"event": "began"}
    before = run.manifest.get("state")
    found = resumed.findings
    return {
        "event": "resumed",
        "step": step_of(resumed.checkpoint),
        "after": "killed" if before == "running" else before,  # it did not come to write how it ended
        "damaged": [f.measured for f in found if f.name == "checkpoint" and f.verdict == "warn"],
        "changed": [f"{f.name}: {f.measured}" for f in found if f.reason == "changed on resume"],
        "elsewhere": differences(run.manifest),
    }


def _ended(run: RunDirectory, state: str, begin: float, error: str | None = None) -> None:
    results = (run.manifest.get("results") or {}) if state in ("finished", "paused") else {}
    kept = list_checkpoints(run.path)
    step = results.get("steps", step_of(kept[0]) if kept else 0)
    seconds = time.monotonic() - begin
    event = {"event": state, "step": step, "seconds": seconds}
    told = {} if error is None else {"error": error}
    run.update(state=state, finished=now(), seconds=seconds, history=_history(run, **event), **told)


def _command(run: RunDirectory, loaded: LoadedModel, settings: TrainSettings) -> str:
    """The command line for a run begun in Python; empty where it was given Python objects."""
    provenance = loaded.provenance
    if not provenance.files or settings.data.startswith("<") or (provenance.kind == "example" and provenance.config):
        return ""
    model = provenance.location
    if provenance.kind in ("file", "folder"):
        model = f"{Path(model) / next(iter(provenance.files)) if provenance.kind == 'folder' else model}"
        model = model if model.endswith(f":{provenance.class_name}") else f"{model}:{provenance.class_name}"
    return shlex.join(["anyformer", "train", model, "--config", str(run.path / "settings.yaml")])


@contextmanager
def recorded_end(run: RunDirectory, begin: float) -> Iterator[None]:
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
        _ended(run, "interrupted", begin, str(told))
        raise told from stop
    except Exception as error:
        problem = _with_last_checkpoint(error, run)
        with suppress(TrainingError):  # a full disk: the reason that is raised matters more than its record
            _ended(run, "failed", begin, str(problem))
        if problem is error:
            raise
        raise problem from error
    paused = (run.manifest.get("results") or {}).get("out_of_time")
    _ended(run, "paused" if paused else "finished", begin)


def _with_last_checkpoint(error: Exception, run: RunDirectory) -> Exception:
    """A training error that also says what is kept; other errors stay as they are."""
    if not isinstance(error, TrainingError):
        return error
    kept = list_checkpoints(run.path)
    last = f"the last good checkpoint is kept: {kept[0]}" if kept else "no checkpoint was saved yet"
    return type(error)(error.what, f"{error.detail}\n{last}".strip(), error.fix)

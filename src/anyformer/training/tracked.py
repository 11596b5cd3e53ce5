"""A run's trackers: asked for before anything is read, begun with the run, ended with it however it ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from anyformer.core.errors import Interrupted, TrainingError
from anyformer.core.findings import Finding
from anyformer.core.optional import require_there
from anyformer.core.protocols import View
from anyformer.core.settings import TrainSettings
from anyformer.runs.checkpoints import step_of
from anyformer.runs.directory import RunDirectory
from anyformer.runs.table import FILE, read_metrics
from anyformer.runs.trackers import About, Row
from anyformer.runs.tracking import WAIT, WAIT_STOPPED, Trackers
from anyformer.training.effective import Effective
from anyformer.training.resume import ResumePoint

_NEEDS = {"tensorboard": ("tensorboard",), "wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}


def chosen_trackers(settings: TrainSettings) -> list[str]:
    """The trackers that the settings ask for, beside the CSV file."""
    asked = {"tensorboard": settings.tensorboard, "wandb": settings.wandb is not None, "mlflow": settings.mlflow}
    return [name for name, wanted in asked.items() if wanted]


def require_trackers(settings: TrainSettings) -> None:
    """DependencyError where a package of a tracker is missing; imports none of them."""
    for name in chosen_trackers(settings):
        for module in _NEEDS[name]:
            require_there(module, "track", f"--{name}")


@contextmanager
def tracked(
    run: RunDirectory,
    settings: TrainSettings,
    effective: Effective,
    findings: list[Finding],
    resumed: ResumePoint | None,
    view: View,
) -> Iterator[Trackers]:
    """The trackers of a run, which get what metrics.csv holds already, each row from now on, and how it ended.

    ``findings`` gets a warning for each tracker that was left behind. Processes beside the first track nothing.
    """
    names = chosen_trackers(settings) if getattr(rank_zero_only, "rank", 0) == 0 else []
    about = About(
        folder=str(run.metrics.resolve()),
        name=run.path.name,
        id=str(run.manifest.get("id") or run.path.name),
        resumed_at=step_of(resumed.checkpoint) if resumed is not None else None,
        settings=_facts(run, settings, effective),
        mode=settings.wandb or "",
        pid=os.getpid(),
    )
    for name in names:
        view.stage("tracking", *_where(name, run, settings))
    rows = _rows_so_far(run, about.resumed_at) if names and about.resumed_at is not None else []
    trackers = Trackers(names, about, rows, view)
    state = "failed"
    try:
        yield trackers
        state = "paused" if (run.manifest.get("results") or {}).get("out_of_time") else "finished"
    except (Interrupted, KeyboardInterrupt):
        state = "interrupted"
        raise
    finally:
        results = run.manifest.get("results") or {} if state == "finished" else {}
        in_time = state == "finished" and settings.max_time is None
        trackers.close(state, _numbers(results), WAIT if in_time else WAIT_STOPPED)
        if trackers.findings:
            findings += trackers.findings
            with suppress(TrainingError):  # a full disk: the reason that ended the run matters more than its record
                run.update(findings=[finding.to_dict() for finding in findings])


def _rows_so_far(run: RunDirectory, step: int) -> list[Row]:
    """What metrics.csv holds up to a step, for a tracker that lacks some of it."""
    rows = [row for row in read_metrics(run.path / FILE) if row["step"] is not None and row["step"] <= step]
    ended = max((row["seconds"] or 0.0 for row in rows), default=0.0)
    now = time.time()
    return [
        Row(int(row["step"] or 0), now - ended + (row["seconds"] or 0.0), _numbers({**row, "step": None}))
        for row in rows
    ]


def _facts(run: RunDirectory, settings: TrainSettings, effective: Effective) -> dict[str, Any]:
    """What a tracker compares runs by: every setting with what was derived for it, and the model."""
    model = run.manifest.get("model") or {}
    return {
        **{name: value for name, value in settings.to_dict().items() if name != "resume"},
        **effective.to_dict(),
        "model": model.get("class_name"),
        "parameters": model.get("parameters"),
    }


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _where(name: str, run: RunDirectory, settings: TrainSettings) -> tuple[str, str]:
    """A tracker, and how to look at what it holds."""
    if name == "tensorboard":
        return "TensorBoard", f"tensorboard --logdir {run.path.parent}"
    if name == "wandb":
        folders = f"{run.metrics / 'wandb'}/offline-run-*"
        return f"W&B, {settings.wandb}", f"to upload: wandb sync {folders}" if settings.wandb == "offline" else ""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return "MLflow", uri or f"mlflow ui --backend-store-uri sqlite:///{run.metrics / 'mlflow.db'}"

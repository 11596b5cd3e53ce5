"""A run's backup: asked for before anything is read, begun with the run, waited for after it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from anyformer.core.errors import TrainingError
from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.core.settings import TrainSettings
from anyformer.runs.backup import Backup
from anyformer.runs.checkpoints import list_checkpoints, step_of
from anyformer.runs.directory import RunDirectory
from anyformer.runs.elsewhere import backup_of, require_elsewhere
from anyformer.runs.remote import RemoteFolder
from anyformer.training.resume import ResumePoint


def require_backup(settings: TrainSettings) -> None:
    """SettingsError or DependencyError where ``--backup`` can never work; asks nothing of the place itself."""
    if settings.backup is not None:
        RemoteFolder(settings.backup)
        if settings.resume is None:
            require_elsewhere(settings.backup, Path(settings.output_dir).expanduser() / (settings.name or "run"))


def begin_backup(run: RunDirectory, settings: TrainSettings, resumed: ResumePoint | None, view: View) -> Backup | None:
    """The backup of a run, where one was asked for; what a resumed run has already is copied first."""
    if settings.backup is None:
        return None
    # what is newer there is dropped only where it was seen: a place that did not answer may hold what is missing here
    asked = resumed is not None and not any(f.name == "backup" and f.verdict == "warn" for f in resumed.findings)
    beyond = step_of(resumed.checkpoint) if resumed is not None and asked else None
    backup = backup_of(run, settings.backup, view, drop_beyond=beyond)
    for folder in reversed(list_checkpoints(run.path)):
        backup.offer(folder)
    return backup


def end_backup(
    run: RunDirectory, findings: list[Finding], view: View, backup: Backup, said: list[Finding], limit: float
) -> None:
    """Record how the backup went, here and there."""
    findings += said
    for finding in said:
        view.finding(finding)
    with suppress(TrainingError):  # a full disk: the reason that ended the run matters more than its record
        run.update(findings=[finding.to_dict() for finding in findings])
    backup.refresh(limit)

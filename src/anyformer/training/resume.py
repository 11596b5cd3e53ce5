"""Going on where a run stopped: which run, which checkpoint, and whether it is still the same run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from anyformer.core.errors import AnyformerError, CorruptCheckpoint, DataError, SettingsError, SourceError
from anyformer.core.findings import Finding
from anyformer.core.names import default_run_name, run_folder
from anyformer.core.places import DATA_PLACES, from_here, same_place
from anyformer.core.protocols import View
from anyformer.core.settings import DEFAULT_BATCH, TrainSettings
from anyformer.models.source import LoadedModel, Provenance, load_model
from anyformer.runs.checkpoints import list_checkpoints, newest_good, require_own, step_of
from anyformer.runs.directory import RunDirectory
from anyformer.runs.elsewhere import bring_newer, require_elsewhere
from anyformer.runs.environment import differences
from anyformer.runs.find import find_run
from anyformer.runs.leftovers import clear_up
from anyformer.runs.rebuild import stored_model
from anyformer.training.effective import Effective
from anyformer.training.text import Text

UNCHANGEABLE = (
    *("batch_size", "accumulate_grad_batches", "seed", "data", "val_data", "val_split", "text_column"),
    *("stream", "shuffle_buffer"),
    *("tokenizer", "vocab_size", "weights", "objective"),
    *("label_column", "source_column", "target_column", "target_data"),
    "optimizer",
)
"""Settings that are fixed when a run begins: another value would make it another run. So is max_length, as derived."""
CHANGEABLE = (
    *("max_epochs", "max_steps", "schedule", "learning_rate", "min_lr_ratio", "warmup_steps"),
    *("weight_decay", "beta1", "beta2", "gradient_clip_val", "label_smoothing", "early_stopping_patience"),
    *("bad_steps", "spike_sigma", "save_top_k", "save_every", "max_time", "eval_every", "log_every"),
    *("tensorboard", "wandb", "mlflow", "activation_checkpointing", "compile"),
    *("precision", "use_gpu", "devices", "num_nodes", "strategy", "num_workers", "deterministic", "prompt", "backup"),
    "skip_checks",
)
"""Settings that may change on resume: each holds from there on, and the run says so."""


@dataclass(frozen=True)
class ResumePoint:
    """A run and the verified checkpoint to go on from."""

    run: RunDirectory
    checkpoint: Path
    findings: tuple[Finding, ...]


def run_of(path: str | Path) -> RunDirectory:
    """The run that a path names: its folder, or a checkpoint in it."""
    return RunDirectory.open(run_folder(path))


def settings_of(run: RunDirectory) -> TrainSettings:
    """The settings a run was started with. Raises SourceError where settings.yaml is missing or cannot be used."""
    file = run.path / "settings.yaml"
    try:
        return TrainSettings(**yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, TypeError, UnicodeDecodeError) as error:
        raise SourceError(f"{file} cannot be read", str(error), "start the run anew") from error


def model_of(run: RunDirectory, module: nn.Module | None) -> LoadedModel:
    """The run's model with its first weights' structure, from its own copy of the source; or the module given."""
    provenance = Provenance.from_dict(run.manifest["model"])
    loaded = load_model(module) if module is not None else stored_model(run, provenance)
    # what was stated about the call when the run began holds until its end
    return loaded.stating(run.manifest.get("overrides"))


def require_same_model(run: RunDirectory, given: LoadedModel) -> None:
    """SettingsError where the model given beside ``--resume`` is not the one that the run began with."""
    before = Provenance.from_dict(run.manifest["model"])
    if (given.provenance.class_name, given.provenance.files) != (before.class_name, before.files):
        raise SettingsError(
            f"{given.provenance.class_name} is not the model that the run {run.path} was started with",
            f"that was {before.class_name} from {before.location}; class and source must be the same",
            f"anyformer train --resume {run.path}   (the model comes from the run)",
        )


def resume_point(settings: TrainSettings, max_length: int, view: View) -> ResumePoint:
    """The run and its newest good checkpoint (or the one named), damaged ones set aside and said aloud.

    Call it while the run is locked: what a killed process left half-done is cleared up. Raises SettingsError where a
    setting differs that decides which sample comes next, CheckpointError where there is no checkpoint,
    CorruptCheckpoint where none is intact.
    """
    named = Path(str(settings.resume)).expanduser()
    run = run_of(named)
    before: dict[str, Any] = run.manifest.get("settings", {})
    opened = {**before, **from_here(run.path, before)}
    for name in UNCHANGEABLE:
        same = name in DATA_PLACES and same_place(getattr(settings, name), opened.get(name))
        if name in before and not same and _meant(name, before[name]) != _meant(name, getattr(settings, name)):
            raise SettingsError(
                f"{name} is {getattr(settings, name)}, but the run {run.path} was started with {before[name]}",
                "this is fixed when a run begins: model, tokenizer, data and their order",
                "leave it as it was, or start another run (without --resume)",
            )
    length = run.manifest.get("effective", {}).get("max_length", max_length)
    if length != max_length:
        raise SettingsError(f"max_length is {max_length}, but the run {run.path} was started with {length}")
    findings: list[Finding] = []
    for name in CHANGEABLE:
        if name in before and before[name] != (given := getattr(settings, name)):
            old, new = ("derived" if value is None else value for value in (before[name], given))
            findings.append(Finding(name, "note", f"{new} instead of {old}", reason="changed on resume"))
            view.finding(findings[-1])

    def report(path: Path, error: AnyformerError) -> None:
        findings.append(Finding("checkpoint", "warn", error.what, reason=f"set aside as {path.name}"))
        view.finding(findings[-1])

    if elsewhere := differences(run.manifest):
        why = "the last digits may differ from those of a run that never stopped"
        findings.append(Finding("conditions", "warn", "; ".join(elsewhere), "as the run began", why))
        view.finding(findings[-1])
    clear_up(run.path)
    if named.parent.name == "checkpoints" and named != run.path:
        require_own(named, run.path)
        checkpoint = named
    elif settings.backup is None:
        checkpoint = newest_good(run.path, report)
    else:
        findings += brought_from_backup(run, settings.backup, report, view)
        checkpoint = newest_good(run.path, report)
    view.stage("resume", str(run.path), f"from {checkpoint.name}, verified")
    return ResumePoint(run, checkpoint, tuple(findings))


def _meant(name: str, value: Any) -> Any:
    """What a setting decides of the order of samples: auto finds out how a batch is run, not what is in it."""
    return DEFAULT_BATCH if name == "batch_size" and value == "auto" else value


def brought_from_backup(
    run: RunDirectory, url: str, report: Callable[[Path, CorruptCheckpoint], None], view: View
) -> list[Finding]:
    """Fetch what the backup has beyond the newest good checkpoint here, with damaged ones here set aside first."""
    require_elsewhere(url, run.path)
    problem: CorruptCheckpoint | None = None
    if list_checkpoints(run.path):
        try:
            newest_good(run.path, report)
        except CorruptCheckpoint as error:  # all of them: the backup is asked next
            problem = error
    findings = bring_newer(run, url, view)
    if problem is not None and not list_checkpoints(run.path):
        raise problem
    return findings


def chosen_settings(
    model: str | Path | nn.Module | None, settings: TrainSettings | None, given: dict[str, Any], view: View
) -> tuple[TrainSettings, bool]:
    """The settings of a run: ``given`` over ``settings`` over those of the run that is resumed; and whether by auto.

    ``resume="auto"`` becomes the path of the run that was meant, or None where a new one begins.
    """
    first = replace(settings or TrainSettings(), **given)
    by_auto = first.resume == "auto"
    if by_auto:
        found = find_for(model, first, view)
        given = {**given, "resume": None if found is None else str(found)}
        if found is None:
            view.line(f"  nothing to go on with in {_places(first)}: a new run begins")
    elif settings is not None or first.resume is None:
        return first, False
    if settings is None and given["resume"] is not None:
        settings = settings_of(run_of(given["resume"]))
    return replace(settings or TrainSettings(), **given), by_auto


def find_for(model: str | Path | nn.Module | None, settings: TrainSettings, view: View) -> Path | None:
    """The run that ``resume="auto"`` means for a model: the newest that was started under the same name; or None.

    Without a model, the newest of all. Raises SettingsError where the name cannot be known, or no model is there
    to begin a run with.
    """
    name = settings.name
    if name is None and isinstance(model, nn.Module):
        what = "resume='auto' looks for a run by its name, and a model given as an object has none"
        raise SettingsError(what, fix="give name='…', the same each time")
    if name is None and model is not None:
        name = default_run_name(str(model), settings.data)
    found = find_run(name, settings.output_dir, settings.backup, view)
    if found is None and model is None:
        raise SettingsError(f"no run with a checkpoint in {_places(settings)}", fix="anyformer train MODEL --data FILE")
    return found


def _places(settings: TrainSettings) -> str:
    return " or ".join(place for place in (settings.output_dir, settings.backup) if place)


def goes_on(point: ResumePoint, effective: Effective, view: View, *, finished_ok: bool) -> list[Finding]:
    """Make the run ready to go on from the checkpoint: what was written after it is set aside or dropped.

    Raises SettingsError where the run is finished and no more is asked of it; with ``finished_ok`` it is measured anew.
    """
    run, step, total = point.run, step_of(point.checkpoint), effective.total_steps
    before = run.manifest.get("effective", {}).get("total_steps", total)
    if step > total or (step == total and run.manifest.get("state") == "finished" and not finished_ok):
        ended = f"at step {step:,}" if step == total else f"at step {step:,}, beyond the {total:,} steps asked for"
        raise SettingsError(f"the run {run.path} is finished {ended}", fix=_further(run, total, effective))
    findings = []
    if total != before:
        reason = "the schedule of the learning rate is stretched over the new length"
        findings.append(Finding("length", "note", f"{total:,} steps instead of {before:,}", reason=reason))
    for later in list_checkpoints(run.path):
        if step_of(later) > step:
            aside = later.with_name(f"{later.name}.before-resume")
            shutil.rmtree(aside, ignore_errors=True)
            later.rename(aside)
            why = f"the run goes on from step {step:,}; this one is kept as {aside.name}"
            findings.append(Finding("checkpoint", "note", later.name, reason=why))
    for finding in findings:
        view.finding(finding)
    run.drop_samples_beyond(step)
    return findings


def _further(run: RunDirectory, total: int, effective: Effective) -> str:
    """How to train on: the setting that ended the run, larger."""
    settings = run.manifest.get("settings", {})
    resume = f"to train on: anyformer train --resume {run.path}"
    if settings.get("max_steps") is not None:
        epochs = settings.get("max_epochs")
        return f"{resume} --max_steps {2 * total}" + (f" --max_epochs {2 * epochs}" if epochs else "")
    return f"{resume} --max_epochs {2 * max(1, round(total / effective.steps_per_epoch))}"


def with_own_place(settings: TrainSettings, run: RunDirectory) -> TrainSettings:
    """The settings with the run's own name and folder: they have no effect on a resumed run, and the record says so.

    Its data, which is the same, is where the run began with it, wherever it is resumed.
    """
    before = run.manifest.get("settings", {})
    kept = {name: before[name] for name in ("name", "output_dir") if name in before}
    return replace(settings, **kept, **from_here(run.path, before))


def same_precision(run: RunDirectory, setting: str, device: torch.device) -> tuple[str, Finding] | None:
    """The precision that the run began with, where it was measured on such a device; None to choose anew."""
    effective = run.manifest.get("effective", {})
    precision = effective.get("precision")
    if setting != "auto" or precision is None or effective.get("device") != device.type:
        return None
    return precision, Finding("precision", "note", precision, reason="as the run began")


def same_data(run: RunDirectory, text: Text) -> None:
    """DataError where the text is no longer the one that the run began with."""
    before = run.manifest.get("data", {}).get("fingerprint")
    if before is not None and text.fingerprint is not None and before != text.fingerprint:
        raise DataError(
            f"{text.name} has changed since the run {run.path} began",
            f"its fingerprint is {text.fingerprint[:16]}…, it was {before[:16]}…: other samples would come",
            "bring back the text as it was, or start another run with --weights of this one",
        )

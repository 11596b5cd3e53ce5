"""A run trained anew from its manifest, and compared with what it was: the curve row by row, the weights by hash."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anyformer.core.errors import (
    AnyformerError,
    DataError,
    DataNotFound,
    Interrupted,
    SettingsError,
    SourceError,
    TrainingError,
)
from anyformer.core.findings import Finding
from anyformer.core.names import free_folder
from anyformer.core.places import from_here
from anyformer.core.protocols import View
from anyformer.core.settings import ReproduceSettings, TrainSettings
from anyformer.models.network.gistcache import Gist
from anyformer.models.source import LoadedModel, Provenance, load_model
from anyformer.models.trust import TrustRequest, require_trust
from anyformer.models.weights import load_weights, sha256_of
from anyformer.runs.compare import TOLERANCE, compare_curves, compare_weights
from anyformer.runs.directory import RunDirectory
from anyformer.runs.environment import differences
from anyformer.runs.rebuild import stored_model
from anyformer.runs.story import run_story
from anyformer.tokenization.load import load_tokenizer
from anyformer.training.coordinator import Replay, run_training

HARMLESS = ("backup", "save_every", "max_time", "num_workers", "save_top_k", "prompt", "tensorboard", "wandb", "mlflow")
"""Settings that may have changed on the way without a step becoming another."""
_DERIVED = (
    *("learning_rate", "warmup_steps", "weight_decay", "max_length", "eval_every", "log_every"),
    "precision",
)
"""What a run derived where it was not set: taken as it was, not derived (or measured) again."""


@dataclass(frozen=True)
class Reproduction:
    """What came of a replay."""

    run_path: Path
    steps: int
    """How many steps were replayed."""
    reproduced: bool
    """No finding contradicts the run."""
    exact: bool
    """Whether bit for bit was asked for: same versions, processor and threads, on a CPU."""
    replay_path: Path | None
    """The replay's folder; None where it was equal and is not kept."""
    findings: list[Finding]


def reproduce_run(
    path: str | Path,
    settings: ReproduceSettings,
    *,
    model: nn.Module | None = None,
    data: Any = None,
    trust: bool = False,
    approve: Callable[[TrustRequest], bool] | None = None,
    view: View,
) -> Reproduction:
    """Train a run's model anew from its beginning and compare; the run itself is only read.

    model, data: the objects that the run was given, where it was begun in Python. trust, approve: of code that came
    over a network and was not approved here. Raises SourceError (no run, its source is gone or changed), TrustError,
    DataError (the text is gone or changed), SettingsError (nothing to replay, settings changed on the way),
    TrainingError (it is still being trained).
    """
    run = RunDirectory.open(path)
    steps = _steps(run, settings.steps)
    recorded = _settings(run)
    _require_known_data(run, recorded, data)
    loaded, findings = _model(run, recorded, model, trust, approve, view)
    parent = Path(settings.output_dir).expanduser() if settings.output_dir else run.path.parent
    folder = free_folder(parent, f"{run.path.name}-reproduced")
    chosen = replace(recorded, name=folder.name, output_dir=str(parent))
    view.stage("replay", str(folder), f"{steps:,} step{'' if steps == 1 else 's'} of {run.path}")
    with _threads(run):
        elsewhere = [*differences(run.manifest), *_moved(run)]
        try:
            tokenizer = load_tokenizer(run.tokenizer)
            result = run_training(
                loaded, chosen, dataset=data, tokenizer=tokenizer, view=view, replay=Replay(run, steps)
            )
            ended: list[Finding] = []
            device = result.adapter.trainer.strategy.root_device.type
        except Interrupted as stop:
            shutil.rmtree(folder, ignore_errors=True)  # half a replay proves nothing
            raise _left(stop) from stop
        except DataNotFound as error:
            raise _gone(error, run) from error
        except TrainingError as error:
            if not folder.exists():
                raise
            ended, device = [Finding("replay", "fail", error.what, f"{steps:,} steps", error.detail)], "cpu"
    then = str((run.manifest.get("effective") or {}).get("device"))
    elsewhere += [f"device: {device} instead of {then}"] if device != then else []
    exact = not elsewhere and device == "cpu"
    findings += [_conditions(elsewhere, device), *_derived_alike(run, folder), *ended]
    findings.append(compare_curves(run.path, folder, steps, exact=exact))
    findings.append(compare_weights(run.path, folder, steps, exact=exact))
    findings.append(_verdict(findings, steps, exact))
    equal = findings[-1].verdict == "ok"
    kept = _kept(folder, run, findings, remove=equal and not settings.keep)
    return Reproduction(run.path, steps, equal, exact, kept, findings)


def _steps(run: RunDirectory, asked: int | None) -> int:
    """How many steps to replay; refused where a run goes on, made none, or changed its settings on the way."""
    if run.manifest.get("state") == "running" and run.is_held():
        raise TrainingError(f"the run {run.path} is still being trained", fix="wait until it ends, or stop it")
    if not isinstance(run.manifest.get("effective"), dict) or not isinstance(run.manifest.get("model"), dict):
        raise SettingsError(f"the run {run.path} ended before its first step: there is nothing to replay")
    made = int((run.manifest.get("results") or {}).get("steps") or run_story(run.path)["step"])
    if not made:
        raise SettingsError(f"the run {run.path} left no row of metrics and no checkpoint to compare with")
    if asked is not None and asked > made:
        raise SettingsError(f"steps is {asked:,}, but the run {run.path} made {made:,}", fix=f"--steps {made} or less")
    for event in run.manifest.get("history") or []:
        for change in event.get("changed", ()):
            name, _, words = change.partition(": ")
            # until a run that stops at a bad step is told to skip such steps, it had none
            if name not in HARMLESS and not (name == "bad_steps" and words.startswith("skip")):
                since = f"from step {event.get('step', 0):,} on"
                raise SettingsError(
                    f"the run {run.path} changed its settings on the way: {change}, {since}",
                    "trained from its beginning with the settings it ended with, it would be another run",
                    "train it anew: anyformer train MODEL --config " + str(run.path / "settings.yaml"),
                )
    return asked or made


def _settings(run: RunDirectory) -> TrainSettings:
    """The settings as the manifest has them, with the values that were derived; nothing that only concerns saving."""
    effective = run.manifest["effective"]
    recorded = dict(run.manifest.get("settings") or {})
    recorded.update(from_here(run.path, recorded))
    try:
        settings = TrainSettings(**recorded)
    except TypeError as error:
        raise SettingsError(f"{run.path / 'run.json'} holds settings of another version", str(error)) from error
    open_ones = [name for name in _DERIVED if recorded.get(name) in (None, "auto") and name in effective]
    derived = {name: effective[name] for name in open_ones}
    alone = replace(settings, backup=None, tensorboard=False, wandb=None, mlflow=False)  # nothing of it goes elsewhere
    return replace(alone, **derived, resume=None, max_time=None, save_every="never")


def _require_known_data(run: RunDirectory, settings: TrainSettings, data: Any) -> None:
    recorded = run.manifest.get("data") or {}
    if recorded.get("fingerprint") is None:
        raise DataError(
            f"the run {run.path} read batches of {recorded.get('name')}, an object of which nothing is recorded",
            "nobody could say whether they are the same again",
        )
    if data is None and settings.data.startswith("<"):
        raise DataError(
            f"the run {run.path} was given its data as a Python object ({settings.data.strip('<>')})",
            fix=f"in Python: anyformer.reproduce({str(run.path)!r}, data=…)",
        )


def _model(
    run: RunDirectory,
    settings: TrainSettings,
    module: nn.Module | None,
    trust: bool,
    approve: Callable[[TrustRequest], bool] | None,
    view: View,
) -> tuple[LoadedModel, list[Finding]]:
    """The model as the run began with it: the run's own copy of the source, verified, and the same first weights."""
    provenance = Provenance.from_dict(run.manifest["model"])
    findings = []
    if module is not None:
        loaded = load_model(module)
        findings.append(Finding("source", "note", "the object given", reason="with its weights; none are recorded"))
    elif not provenance.files:
        raise SourceError(
            f"the run {run.path} was given its model as a Python object ({provenance.class_name})",
            "its source and its first weights are not known",
            f"in Python: anyformer.reproduce({str(run.path)!r}, model=…), with the weights it had at first",
        )
    elif provenance.kind == "hf":
        loaded = load_model(provenance.location, config=provenance.config, seed=run.manifest.get("seed"))
        _require_same(provenance, loaded)
    else:
        if provenance.kind == "gist":
            findings.append(_approved(run, provenance, trust, approve, view))
        loaded = stored_model(run, provenance)
    if module is None:
        findings.append(_source(provenance))
        if settings.weights is not None:
            findings.append(_first_weights(loaded.module, provenance, settings.weights))
        loaded = replace(loaded, provenance=provenance)
    return loaded.stating(run.manifest.get("overrides")), findings


def _source(provenance: Provenance) -> Finding:
    """What was built; and that the file it came from is another by now, which no replay needs."""
    why, original = f"from {provenance.location}", Path(provenance.location)
    if provenance.kind == "file" and original.is_file():
        edited = sha256_of(original) not in provenance.files.values()
        why += ", which was edited since; built from the run's own copy" if edited else ""
    return Finding("source", "ok", f"{', '.join(provenance.files)}: as it was", "the same sha256", why)


def _require_same(provenance: Provenance, loaded: LoadedModel) -> None:
    """SourceError naming the files that are not what they were."""
    found = loaded.provenance.files
    changed = [name for name in {**provenance.files, **found} if provenance.files.get(name) != found.get(name)]
    if changed:
        raise SourceError(
            f"{provenance.location} has changed since the run began: {', '.join(sorted(changed))}",
            fix="bring the files back as they were",
        )


def _approved(
    run: RunDirectory,
    provenance: Provenance,
    trust: bool,
    approve: Callable[[TrustRequest], bool] | None,
    view: View,
) -> Finding:
    """Approval of a gist's code that lies in the run: a run may have been copied from anywhere."""
    folder = run.path / "model"
    missing = [name for name in provenance.files if not (folder / name).is_file()]
    if missing:
        raise SourceError(f"the run's copy of the model's source is incomplete: {folder / missing[0]} is missing")
    gist = Gist(
        id=provenance.location.removeprefix("gist:").partition("@")[0].partition(":")[0],
        revision=provenance.revision,
        owner=provenance.owner,
        description="",
        folder=folder,
        files=provenance.files,
        main=next(iter(provenance.files)),
    )
    return require_trust(gist, trust=trust, approve=approve, view=view)


def _first_weights(module: nn.Module, provenance: Provenance, weights: str) -> Finding:
    """The user's own weights in place, if they are still those the run began with."""
    file = Path(weights).expanduser()
    expected = (provenance.weights or {}).get(file.name)
    if not file.is_file():
        raise SourceError(f"the weights that the run began with are gone: {file}", fix="bring the file back")
    found = sha256_of(file)
    if found != expected:
        raise SourceError(
            f"the weights that the run began with have changed: {file}",
            f"sha256 is {found}\nit was   {expected or 'not recorded'}",
            "bring the file back as it was",
        )
    load_weights(module, file)
    return Finding("first weights", "ok", f"{file.name}: as it was", "the same sha256", f"sha256 {found[:16]}…")


@contextmanager
def _threads(run: RunDirectory) -> Iterator[None]:
    """As many threads as the run had: sums are split among them, and their last digits with it."""
    before, then = torch.get_num_threads(), (run.manifest.get("machine") or {}).get("threads")
    if isinstance(then, int) and then > 0:
        torch.set_num_threads(then)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _moved(run: RunDirectory) -> list[str]:
    """Where the run went on under other versions or on another machine than it began with."""
    events = run.manifest.get("history") or []
    return [f"{one}, from step {event.get('step', 0):,} on" for event in events for one in event.get("elsewhere", ())]


def _conditions(elsewhere: list[str], device: str) -> Finding:
    if elsewhere:
        why = f"so the last digits may differ, and losses are compared within {TOLERANCE:.0%}"
        return Finding("conditions", "warn", "; ".join(elsewhere), "the same versions, processor and threads", why)
    if device != "cpu":
        why = f"its sums are not in a fixed order: losses are compared within {TOLERANCE:.0%}"
        return Finding("conditions", "note", f"on {device}", reason=why)
    return Finding("conditions", "ok", "the same versions, processor and threads", reason="bit for bit is asked for")


def _derived_alike(run: RunDirectory, folder: Path) -> list[Finding]:
    """What the replay derived otherwise than the run did: another version of us, or a device that is not there."""
    before = run.manifest["effective"]
    try:
        now = RunDirectory.open(folder).manifest.get("effective") or {}
    except AnyformerError:
        return []
    apart = [
        f"{name} {now[name]} instead of {value}" for name, value in before.items() if now.get(name, value) != value
    ]
    return [Finding("derived", "warn", "; ".join(apart), reason="from the same settings")] if apart else []


def _verdict(findings: list[Finding], steps: int, exact: bool) -> Finding:
    """One line for all of it; a comparison that could not be made proves nothing."""
    made = f"{steps:,} step{'' if steps == 1 else 's'}"
    failed = [finding for finding in findings if finding.verdict == "fail"]
    if failed:
        return Finding("reproduced", "fail", f"no: {failed[0].name} ({failed[0].measured})", made)
    compared = [
        finding for finding in findings if finding.name in ("loss curve", "weights") and finding.verdict == "ok"
    ]
    if not compared:
        return Finding("reproduced", "fail", "nothing could be compared", made)
    names = " and ".join(finding.name for finding in compared)
    equal = exact or all("equal" in finding.measured for finding in compared)
    how = "bit for bit" if equal else f"within {TOLERANCE:.0%}"
    return Finding("reproduced", "ok", f"{made}, {names} {how}")


def _kept(folder: Path, run: RunDirectory, findings: list[Finding], *, remove: bool) -> Path | None:
    """The replay's folder with the findings in its manifest, or none of it."""
    if remove:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    replay = RunDirectory.open(folder)
    before = list(replay.manifest.get("findings") or [])
    replay.update(
        reproduces={"run": str(run.path), "id": run.manifest.get("id")},
        findings=[*before, *(finding.to_dict() for finding in findings)],
    )
    return folder


def _left(stop: Interrupted) -> Interrupted:
    left = Interrupted(
        "the replay was stopped; nothing is compared", fix="start it again, or fewer steps of it: --steps N"
    )
    left.exit_code = stop.exit_code
    return left


def _gone(error: DataNotFound, run: RunDirectory) -> DataNotFound:
    name = (run.manifest.get("settings") or {}).get("data")
    what = f"the data of the run {run.path} is not there: {error.what}"
    return DataNotFound(what, error.detail, f"bring {name} back, or start this where the run was started")

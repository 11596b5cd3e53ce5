"""From a run's folder back to the trained module, with its call plan and tokenizer."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from anyformer.core.errors import CheckpointError, ConstructError, DependencyError, SourceError
from anyformer.models.callplan import CallPlan
from anyformer.models.source import LoadedModel, Provenance, load_model
from anyformer.runs.checkpoints import list_checkpoints, read_weights
from anyformer.runs.directory import RunDirectory
from anyformer.runs.files import sha256

if TYPE_CHECKING:
    from torch import Tensor

    from anyformer.tokenization import TextTokenizer


@dataclass(frozen=True)
class LoadedRun:
    """A trained module and what is needed to use it."""

    module: nn.Module
    """The user's module with the checkpoint's weights, on the CPU, in eval mode."""
    plan: CallPlan
    """How it is called, as inferred when the run began."""
    tokenizer: TextTokenizer
    """The run's tokenizer."""
    manifest: dict[str, Any]
    """Content of run.json."""
    provenance: Provenance
    """Where the module came from."""
    checkpoint: Path
    """Directory of the checkpoint whose weights it has."""
    path: Path
    """The run's folder."""


def load_run(
    path: str | Path, checkpoint: Literal["best", "newest"] = "best", *, module: nn.Module | None = None
) -> LoadedRun:
    """The module of a run as trained, rebuilt from the run's own copy of its source.

    checkpoint: "best" by held-out loss (the newest where none is recorded) or "newest".
    module: the module to fill, for runs that began with a Python object.
    Raises SourceError (no run, a source edited since, a module of unknown source), CheckpointError (no checkpoint),
    CorruptCheckpoint (its bytes changed), ConstructError (the weights do not fit).
    """
    from anyformer.tokenization import load_tokenizer

    run = RunDirectory.open(path)
    provenance, plan = _recorded(run)
    folder = _choose_checkpoint(run, checkpoint)
    built = module if module is not None else stored_model(run, provenance).module
    _fill(built, read_weights(folder), folder)
    tokenizer = load_tokenizer(run.tokenizer)
    return LoadedRun(built.eval(), plan, tokenizer, run.manifest, provenance, folder, run.path)


def _recorded(run: RunDirectory) -> tuple[Provenance, CallPlan]:
    missing = [name for name in ("model", "call_plan") if not isinstance(run.manifest.get(name), dict)]
    if missing:
        raise SourceError(
            f"{run.path / 'run.json'} records no {' and no '.join(missing)}",
            detail=f"its state: {run.manifest.get('state', 'unknown')}. {run.manifest.get('error') or ''}",
            fix="the run stopped before its model was ready; train it anew",
        )
    recorded = run.manifest["model"]
    return Provenance.from_dict(recorded), CallPlan.from_dict(run.manifest["call_plan"])


def _choose_checkpoint(run: RunDirectory, wanted: str) -> Path:
    if wanted not in ("best", "newest"):
        raise CheckpointError(f'checkpoint is {wanted!r}; it must be "best" or "newest"')
    best = (run.manifest.get("results") or {}).get("best_checkpoint")
    if wanted == "best" and best:
        # stored relative to the run; by name alone it is found again after the run was moved
        for folder in (run.path / best, run.checkpoints / Path(best).name):
            if folder.is_dir():
                return folder
    found = list_checkpoints(run.path)
    if not found:
        raise CheckpointError(
            f"{run.path} has no checkpoint to load", fix="the run stopped before its first checkpoint; train it anew"
        )
    return found[0]


def stored_model(run: RunDirectory, provenance: Provenance) -> LoadedModel:
    """The run's model, built anew from the run's own copy of its source, without trained weights.

    Raises SourceError where the source is not known, incomplete or edited since.
    """
    seed = run.manifest.get("seed")  # what a constructor draws and no state dict holds is drawn again
    if not provenance.files:
        raise SourceError(
            f"{run.path.name} was trained from a Python object ({provenance.class_name}) whose source is not known",
            fix="pass the module in Python: load_run(path, module=...)",
        )
    if provenance.kind == "import":
        # a module of a package may import its neighbours, which the single copied file cannot: use the package while
        # it is the same, the copy otherwise
        with contextlib.suppress(SourceError, ConstructError, DependencyError):
            loaded = load_model(provenance.location, config=provenance.config, seed=seed)
            if loaded.provenance.files == provenance.files:
                return loaded
    for name, expected in provenance.files.items():
        copy = run.path / "model" / name
        if not copy.is_file():
            raise SourceError(f"the run's copy of the model's source is incomplete: {copy} is missing")
        if (found := sha256(copy)) != expected:
            raise SourceError(
                f"{copy} was edited since the run began",
                detail=f"sha256 is {found}\nit was   {expected}",
                fix="restore the file: the weights belong to the source they were trained with",
            )
    if provenance.kind == "hf":  # config.json alone builds it; the checkpoint brings the weights
        values = {**(provenance.config or {}), "architectures": [provenance.class_name]}
        return load_model(f"hf:{run.path / 'model'}", config=values, seed=seed)
    main = next(iter(provenance.files))
    copy = (run.path / "model" / main).resolve()
    with contextlib.chdir(copy.parent):  # the data files that it opens are those that were kept with it
        return load_model(f"{copy}:{provenance.class_name}", config=provenance.config, seed=seed)


def _fill(module: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ConstructError(
            f"the weights in {folder} do not fit {type(module).__name__}",
            detail=str(error),
            fix="give the module as it was trained: same class, same sizes",
        ) from error

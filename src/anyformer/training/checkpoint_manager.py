"""CheckpointManager of the API reference: durable checkpoints in any ``pl.Trainer``, and what becomes of them."""

from __future__ import annotations

import copy
import inspect
import math
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import pytorch_lightning as pl
import torch
from torch import nn

from anyformer.core.errors import CheckpointError, ConstructError, CorruptCheckpoint, SettingsError
from anyformer.core.names import MANIFEST as RUN_MANIFEST
from anyformer.core.protocols import View
from anyformer.core.view import PlainView
from anyformer.runs.checkpoints import (
    STATE,
    DirectoryCheckpointIO,
    checkpoints_in,
    newest_good_in,
    set_aside,
    verify_checkpoint,
)
from anyformer.runs.foreign import read_ckpt
from anyformer.runs.rebuild import load_run
from anyformer.runs.remote import RemoteFolder, checkpoints_at, fetch_checkpoint
from anyformer.training.adapter import UniversalModelAdapter
from anyformer.training.managed import DriveBackupCallback, ManagedCheckpoint, backup_place

Mode = Literal["min", "max"]
Order = Literal["time", "metric"]
Module = TypeVar("Module", bound=nn.Module)


class CheckpointManager:
    """Saves, finds, loads and prunes checkpoints in one folder, each verified by the hashes it was saved with.

    checkpoint_dir: folder of the checkpoints, ``step-00001200`` each; ``runs/NAME/checkpoints`` of a run works, too.
    save_top_k: how many of the best to keep beside the two newest; −1 keeps all. monitor, mode: what "best" is.
    drive_backup: copy each checkpoint to ``drive_backup_path``, in the background: a folder below the mounted Google
    Drive ("MyDrive/checkpoints" where not given), a whole path, or a URL (s3://…, gs://…, hf://…).
    Raises SettingsError, DataNotFound where Drive is not mounted, DependencyError where the URL needs a package.
    """

    def __init__(
        self,
        checkpoint_dir: str | Path = "./checkpoints",
        save_top_k: int = 3,
        monitor: str = "val_loss",
        mode: Mode = "min",
        drive_backup: bool = False,
        drive_backup_path: str | Path | None = None,
        *,
        view: View | None = None,
    ) -> None:
        if mode not in get_args(Mode):
            raise SettingsError(f"mode is {mode!r}; it must be min or max")
        if save_top_k < -1:
            raise SettingsError(f"save_top_k is {save_top_k}; it must be -1 (all), 0 (the newest only) or more")
        self.checkpoint_dir = Path(checkpoint_dir).expanduser()
        self.save_top_k = save_top_k
        self.monitor = monitor
        self.mode: Mode = mode
        self.drive_backup = drive_backup
        self.drive_backup_path = backup_place(drive_backup_path) if drive_backup else None
        self._view = view or PlainView()
        self._callback: ManagedCheckpoint | None = None
        self._backup: DriveBackupCallback | None = None
        if drive_backup:
            self._backup = DriveBackupCallback(self.checkpoint_dir, self.drive_backup_path, view=self._view)

    def get_callback(self) -> ManagedCheckpoint:
        """The callback for ``pl.Trainer(callbacks=[…])``; it also does the backup, where one was asked for.

        The trainer needs nothing else: files of others that it saves or loads stay what they are.
        """
        if self._callback is None:
            folder = self.checkpoint_dir.resolve()
            self._callback = ManagedCheckpoint(folder, self.save_top_k, self.monitor, self.mode, backup=self._backup)
        return self._callback

    def get_backup_callback(self) -> DriveBackupCallback | None:
        """The callback that copies checkpoints elsewhere; None without ``drive_backup``.

        For a trainer that does not have ``get_callback()``; beside it, it does nothing twice.
        """
        return self._backup

    def list_checkpoints(self, sort_by: Order = "time") -> list[str]:
        """Paths of the checkpoints: "time" the newest first, "metric" the best first (without a score: last)."""
        if sort_by not in get_args(Order):
            raise SettingsError(f"sort_by is {sort_by!r}; it must be time or metric")
        folders = checkpoints_in(self.checkpoint_dir)
        if sort_by == "metric":
            scores = self._scores()
            folders.sort(key=lambda folder: self._rank(scores.get(folder.name)))  # equal ones stay newest first
        return [str(folder) for folder in folders]

    def get_best_checkpoint_path(self) -> str | None:
        """The best intact checkpoint, the newest where no score is known; None where there is none.

        Damaged ones are set aside and said. Raises CorruptCheckpoint where none is intact.
        """
        if not self.list_checkpoints() and not self._fetched():
            return None
        newest = newest_good_in(self.checkpoint_dir, self._set_aside)
        scores = self._scores()
        for path in self.list_checkpoints("metric"):
            if Path(path).name not in scores:
                break
            if self._is_intact(Path(path)):
                return path
        return str(newest)

    def load_checkpoint(self, checkpoint_path: str | Path | None = None) -> dict[str, Any]:
        """What a checkpoint holds, as Lightning's dictionary, tensors on the CPU; the best one where none is named.

        checkpoint_path: a path or a name in ``checkpoint_dir``: a checkpoint of ours, verified first, or a ``.ckpt``
        file of Lightning, read as data only. Raises CheckpointError (none there; a file that would run code),
        CorruptCheckpoint.
        """
        path = self._chosen(checkpoint_path)
        return read_ckpt(path) if path.is_file() else DirectoryCheckpointIO().load_checkpoint(path)

    def load_model_from_checkpoint(
        self, model_class: type[Module], checkpoint_path: str | Path | None = None, *, model: nn.Module | None = None
    ) -> Module:
        """A module of ``model_class`` with a checkpoint's weights, on the CPU, in eval mode; the best where none named.

        model: for UniversalModelAdapter, your module; it may be left out where this manager's callback has trained it,
        and for checkpoints of a run. Other classes are called with what ``save_hyperparameters()`` kept.
        Raises CheckpointError where the module cannot be made, ConstructError where the weights do not fit.
        """
        path = self._chosen(checkpoint_path)
        checkpoint = self.load_checkpoint(path)
        if issubclass(model_class, UniversalModelAdapter):
            built: nn.Module = self._adapter(model_class, path, model)
        else:
            built = _constructed(model_class, checkpoint, path, model)
        if isinstance(built, pl.LightningModule):
            built.on_load_checkpoint(checkpoint)
        state = checkpoint.get("state_dict", checkpoint)
        names = set(built.state_dict())
        if not names & set(state) and all(name.startswith("model.") for name in state):  # a module without its adapter
            state = {name.removeprefix("model."): value for name, value in state.items()}
        try:
            built.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ConstructError(f"the weights in {path} do not fit {model_class.__name__}", str(error)) from error
        return cast(Module, built.eval())

    def import_checkpoint(self, file: str | Path) -> str:
        """Make a checkpoint of ours, with hashes, from a ``.ckpt`` file of Lightning; returns its path.

        Raises CheckpointError where the file would run code when loaded, or holds no ``state_dict``.
        """
        checkpoint = read_ckpt(self._located(file))
        if not isinstance(checkpoint.get("state_dict"), dict):
            raise CheckpointError(f"{file} has no state_dict", f"it holds {list(checkpoint)[:8]}")
        target = self.checkpoint_dir / f"step-{int(checkpoint.get('global_step', 0)):08d}"
        if target.exists():
            raise CheckpointError(f"{target} is there already", fix="import into another folder")
        DirectoryCheckpointIO().save_checkpoint(checkpoint, target)
        return str(target)

    def cleanup_old_checkpoints(self, keep_top_k: int | None = None) -> list[str]:
        """Remove all but the best ``keep_top_k`` (``save_top_k`` where not given); returns what was removed.

        The newest intact one and the best are never removed, nor is anything where none is intact.
        """
        keep = self.save_top_k if keep_top_k is None else keep_top_k
        if keep < 0 or not self.list_checkpoints():
            return []
        protected = {str(newest_good_in(self.checkpoint_dir, self._set_aside)), self.get_best_checkpoint_path()}
        kept = 0
        removed = []
        for path in self.list_checkpoints("metric"):
            # a damaged one counts for nothing: it must not take the place of a good one
            if kept < keep and self._is_intact(Path(path)):
                kept += 1
            elif path not in protected and Path(path).is_dir():
                DirectoryCheckpointIO().remove_checkpoint(path)
                removed.append(path)
        return removed

    def print_checkpoint_info(self) -> None:
        """Print folder, checkpoints with size and score, and which are the best and the newest."""
        paths = [Path(path) for path in self.list_checkpoints()]
        scores = self._scores()
        best = next((Path(path) for path in self.list_checkpoints("metric") if Path(path).name in scores), None)
        print(f"{len(paths)} checkpoint{'s' if len(paths) != 1 else ''} in {self.checkpoint_dir}")
        for path in paths:
            size = sum(file.stat().st_size for file in path.iterdir() if file.is_file()) / 1e6
            score = f"{self.monitor} {scores[path.name]:.4f}" if path.name in scores else "no score"
            marks = [word for word, there in (("newest", path == paths[0]), ("best", path == best)) if there]
            print(f"  {path.name}  {size:,.1f} MB  {score}" + (f"  ({', '.join(marks)})" if marks else ""))
        others = len(list(self.checkpoint_dir.glob("*.ckpt"))) if self.checkpoint_dir.is_dir() else 0
        if others:
            print(f"  and {others} .ckpt file{'s' if others != 1 else ''}: import_checkpoint(FILE) makes one of them")
        if self.drive_backup_path is not None:
            print(f"  backup: {self.drive_backup_path}")

    # --- inside ---

    def _scores(self) -> dict[str, float]:
        """Name → monitored value, as the newest readable checkpoint remembers them, and this session's own."""
        scores: dict[str, float] = {}
        for folder in checkpoints_in(self.checkpoint_dir):
            found = _scores_in(folder, self.monitor)
            if found is not None:
                scores = found
                break
        if self._callback is not None:
            scores |= {Path(path).name: float(value) for path, value in self._callback.best_k_models.items()}
        return {name: value for name, value in scores.items() if math.isfinite(value)}

    def _rank(self, score: float | None) -> float:
        if score is None:
            return math.inf
        return score if self.mode == "min" else -score

    def _is_intact(self, folder: Path) -> bool:
        try:
            verify_checkpoint(folder)
        except CorruptCheckpoint as error:
            self._set_aside(set_aside(folder), error)
            return False
        except CheckpointError:  # removed meanwhile
            return False
        return True

    def _set_aside(self, path: Path, error: CorruptCheckpoint) -> None:
        self._view.line(f"  {error.what}: set aside as {path.name}")

    def _located(self, path: str | Path) -> Path:
        given = Path(path).expanduser()
        return given if given.exists() or given.is_absolute() else self.checkpoint_dir / given

    def _chosen(self, path: str | Path | None) -> Path:
        if path is not None:
            return self._located(path)
        best = self.get_best_checkpoint_path()
        if best is None:
            raise CheckpointError(f"{self.checkpoint_dir} holds no checkpoint", fix="train first, or name a file")
        return Path(best)

    def _fetched(self) -> bool:
        """Bring the newest intact checkpoint from the backup, where nothing is here; whether there was one."""
        if self.drive_backup_path is None:
            return False
        remote = RemoteFolder(self.drive_backup_path)
        for name in checkpoints_at(remote):
            try:
                fetch_checkpoint(remote, name, self.checkpoint_dir)
            except CorruptCheckpoint as error:
                self._view.line(f"  {error.what}: the next older one is tried")
                continue
            self._view.line(f"  {name} came from the backup {self.drive_backup_path}")
            return True
        return False

    def _adapter(
        self, model_class: type[UniversalModelAdapter], path: Path, model: nn.Module | None
    ) -> UniversalModelAdapter:
        seen = self._callback.seen if self._callback is not None else None
        folder = path.resolve().parent.parent
        if path.parent.resolve().name == "checkpoints" and (folder / RUN_MANIFEST).is_file():
            run = load_run(folder, module=None if model is None else copy.deepcopy(model))
            return model_class(
                run.module,
                run.manifest["effective"]["learning_rate"],
                tokenizer=run.tokenizer,
                call_plan=run.plan,
                objective=run.manifest["objective"],
                _proven=True,
            )
        if isinstance(seen, UniversalModelAdapter):
            names = inspect.signature(UniversalModelAdapter.__init__).parameters
            given = {name: getattr(seen, name) for name in names if name != "self" and hasattr(seen, name)}
            return model_class(**{**given, "model": copy.deepcopy(model or seen.model)}, _proven=model is None)
        if model is not None:
            return model_class(copy.deepcopy(model))
        raise CheckpointError(
            f"{path} holds weights, not the code of the model they belong to",
            fix=f"load_model_from_checkpoint({model_class.__name__}, model=YourModel())",
        )


def _scores_in(folder: Path, monitor: str) -> dict[str, float] | None:
    """Scores of the best checkpoints as a checkpoint's callbacks remember them; None where it cannot be read."""
    try:
        # mapped: the optimizer's tensors stay on the disk
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # noqa: BLE001 - damaged in whatever way: the next older one is asked, hashes decide what is used
        return None
    for kept in (state.get("callbacks") or {}).values():
        if isinstance(kept, dict) and "best_k_models" in kept and kept.get("monitor") == monitor:
            return {Path(path).name: float(score) for path, score in kept["best_k_models"].items()}
    return {}


def _constructed(
    model_class: type[nn.Module], checkpoint: dict[str, Any], path: Path, model: nn.Module | None
) -> nn.Module:
    """A module of a class, called with what its checkpoint keeps of its arguments.

    Not through Lightning's own way, which may import a function that the checkpoint names (CVE-2026-58659).
    """
    parameters = inspect.signature(model_class.__init__).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    kept = {k: v for k, v in (checkpoint.get("hyper_parameters") or {}).items() if not str(k).startswith("_")}
    given = {name: value for name, value in kept.items() if takes_all or name in parameters}
    if model is not None:
        given["model"] = copy.deepcopy(model)
    try:
        return model_class(**given)
    except TypeError as error:
        raise CheckpointError(
            f"{model_class.__name__} cannot be made from {path}",
            f"{error}\nkept by save_hyperparameters(): {', '.join(map(str, kept)) or 'nothing'}",
            "call self.save_hyperparameters() in its constructor, or build it and load_state_dict() yourself",
        ) from error

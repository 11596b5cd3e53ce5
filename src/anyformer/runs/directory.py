"""The folder of one run and its manifest, ``run.json``."""

from __future__ import annotations

import errno
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from anyformer.core.errors import SourceError, TrainingError
from anyformer.runs import environment
from anyformer.runs.files import is_disk_full, write_atomically

if TYPE_CHECKING:
    from anyformer.models.source import LoadedModel

FORMAT = 1
MANIFEST = "run.json"


def now() -> str:
    """The current time, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunDirectory:
    """One run on the disk; ``manifest`` is the content of ``run.json``, written at every ``update``."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def create(cls, output_dir: str | Path, name: str) -> RunDirectory:
        """Make ``output_dir/name``, or name-2, name-3 … where it exists, with a first manifest in state "running".

        Raises TrainingError where the folder cannot be made or written.
        """
        parent = Path(output_dir).expanduser()
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path = _new_folder(parent, name)
        except OSError as error:
            raise unwritable(parent, error) from error
        run = cls(path, {})
        try:
            run.checkpoints.mkdir()
            run.metrics.mkdir()
            run.update(
                anyformer=environment.own_version(),
                format=FORMAT,
                name=path.name,
                state="running",
                created=now(),
                finished=None,
                seconds=None,
                command="",
                versions=environment.versions(),
                machine=environment.machine(),
                results=None,
                error=None,
            )
        except (OSError, TrainingError) as error:
            shutil.rmtree(path, ignore_errors=True)  # made a moment ago, holds nothing: leave nothing half-written
            raise error if isinstance(error, TrainingError) else unwritable(path, error) from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """An existing run. Raises SourceError where there is none, or where its manifest cannot be read."""
        folder = Path(path).expanduser()
        file = folder / MANIFEST
        if not file.is_file():
            raise SourceError(f"{folder} is not a run: it has no {MANIFEST}", fix=_runs_beside(folder))
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SourceError(f"{file} cannot be read", detail=str(error)) from error
        if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
            raise SourceError(f"{file} is not a run's manifest: it has no format number")
        if manifest["format"] > FORMAT:
            raise SourceError(
                f"{file} has format {manifest['format']}; this version reads up to {FORMAT}",
                fix="pip install --upgrade anyformer",
            )
        return cls(folder, manifest)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Folder of the metrics."""
        return self.path / "metrics"

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer."""
        return self.path / "tokenizer"

    def update(self, **fields: Any) -> None:
        """Set top-level fields of the manifest and write run.json atomically. Raises TrainingError if it cannot."""
        merged = {**self.manifest, **fields}
        text = json.dumps(merged, indent=2, ensure_ascii=False) + "\n"
        self._write(MANIFEST, text)
        self.manifest = merged

    def write_settings(self, settings: dict[str, Any]) -> None:
        """Write settings.yaml, keys in the order given; usable with ``--config``."""
        self._write("settings.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def store_sources(self, loaded: LoadedModel) -> None:
        """Copy the model's source files into model/, so that the run can be rebuilt after the original was edited.

        Writes model/config.json with what the constructor was given, unless the source brought a config.json.
        """
        target = self.path / "model"
        for name, file in loaded.sources.items():
            copy = target / name
            if not copy.resolve().is_relative_to(target.resolve()):
                raise SourceError(f"the source file {name!r} lies outside the model's folder", detail=str(file))
            try:
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
            except OSError as error:
                raise unwritable(target, error) from error
        config = loaded.provenance.config
        if config is not None and "config.json" not in loaded.sources:
            target.mkdir(exist_ok=True)
            self._write("model/config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    def append_sample(self, step: int, prompt: str, text: str) -> None:
        """Add one line to samples.jsonl: what the model wrote after ``prompt`` at optimizer step ``step``."""
        line = json.dumps({"step": step, "prompt": prompt, "text": text}, ensure_ascii=False)
        try:
            with (self.path / "samples.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise unwritable(self.path, error) from error

    def drop_samples_beyond(self, step: int) -> None:
        """Forget the samples of later steps: a resumed run writes its own."""
        file = self.path / "samples.jsonl"
        if file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            self._write(file.name, "".join(line for line in lines if json.loads(line)["step"] <= step))

    def _write(self, name: str, text: str) -> None:
        try:
            write_atomically(self.path / name, text.encode("utf-8"))
        except OSError as error:
            raise unwritable(self.path, error) from error


def list_runs(parent: str | Path) -> list[str]:
    """Names of the runs in a folder, newest first by when they were last written."""
    try:
        files = [(file.stat().st_mtime, file.parent.name) for file in Path(parent).glob(f"*/{MANIFEST}")]
    except OSError:
        return []
    return [name for _, name in sorted(files, reverse=True)]


def _new_folder(parent: Path, name: str) -> Path:
    # mkdir is atomic: of two runs that start at once, each gets a folder of its own
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def _runs_beside(folder: Path) -> str:
    runs = list_runs(folder.parent)
    if runs:
        more = f" and {len(runs) - 8} more" if len(runs) > 8 else ""
        return f"runs in {folder.parent}: {', '.join(runs[:8])}{more}"
    inside = list_runs(folder)
    if inside:
        return f"runs in {folder}: {', '.join(inside[:8])}"
    return f"{folder.parent} holds no run; anyformer train makes one"


def require_writable(parent: str | Path) -> None:
    """TrainingError where a run could not be made in ``parent``; makes nothing."""
    folder = Path(parent).expanduser()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise unwritable(Path(parent), NotADirectoryError(errno.ENOTDIR, f"{folder} is a file"))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise unwritable(Path(parent), PermissionError(errno.EACCES, f"no permission to write in {folder}"))


def unwritable(folder: Path, error: OSError) -> TrainingError:
    """The error for a folder that cannot be written: what is wrong with it and the way out."""
    if is_disk_full(error):
        what = f"the disk that holds {folder} is full"
        return TrainingError(what, str(error), "free some space, or choose another folder with --output_dir")
    what = f"the run folder {folder} cannot be written"
    return TrainingError(what, error.strerror or str(error), "choose another folder with --output_dir")

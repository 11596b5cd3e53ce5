"""The folder of one run and its manifest, ``run.json``."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from anyformer.core.errors import SourceError, TrainingError
from anyformer.core.files import write_atomically
from anyformer.core.names import MANIFEST as MANIFEST
from anyformer.core.names import runs_beside
from anyformer.runs import environment
from anyformer.runs.files import is_disk_full

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from anyformer.models.source import LoadedModel

FORMAT = 1
_LOCK = ".lock"


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
                id=secrets.token_hex(8),  # tells it from another of its name, in its checkpoints and in a backup
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
            raise SourceError(f"{folder} is not a run: it has no {MANIFEST}", fix=runs_beside(folder))
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
        self._keep_samples(lambda at: at <= step)

    def drop_samples_at(self, step: int) -> None:
        """Forget the samples of exactly this step: they are about to be written anew."""
        self._keep_samples(lambda at: at != step)

    def _keep_samples(self, wanted: Callable[[int], bool]) -> None:
        file = self.path / "samples.jsonl"
        if not file.is_file():
            return
        kept = []
        for line in file.read_bytes().split(b"\n"):  # splitlines would also cut at U+2028, which JSON leaves as it is
            try:
                text = line.decode("utf-8")
                if wanted(int(json.loads(text)["step"])):
                    kept.append(f"{text}\n")
            except (ValueError, TypeError, KeyError):
                continue  # cut short when a run was killed: nothing that could be read again
        self._write(file.name, "".join(kept))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run while it is trained, so that no two processes write it; the system lets go if this one dies.

        Raises TrainingError where another holds it. Does nothing where the platform or the file system has no locks.
        """
        if fcntl is None:
            yield
            return
        try:
            handle = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise unwritable(self.path, error) from error
        try:
            self._take(handle)
            yield
        finally:
            # explicitly: a worker that was forked meanwhile has the file open as well
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)

    def is_held(self) -> bool:
        """Whether a process trains this run now; also where the platform cannot tell."""
        if fcntl is None:
            return True
        try:
            handle = os.open(self.path / _LOCK, os.O_RDWR)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            return False
        finally:
            os.close(handle)  # lets go of it

    def _take(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
        except BlockingIOError as error:
            pid = os.read(handle, 32).decode("ascii", errors="replace").strip() or "unknown"
            raise TrainingError(
                f"the run {self.path} is being trained by another process (pid {pid})",
                fix="wait until it ends, or stop it",
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a network file system without locks
                raise unwritable(self.path, error) from error

    def _write(self, name: str, text: str) -> None:
        try:
            write_atomically(self.path / name, text.encode("utf-8"))
        except OSError as error:
            raise unwritable(self.path, error) from error


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

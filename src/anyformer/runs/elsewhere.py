"""A run's copy in another place: what is kept there, whose it is, and how the run comes back from it.

URL/NAME/
  run.json  settings.yaml  samples.jsonl  metrics/metrics.csv   as of the newest checkpoint
  model/  tokenizer/  BACKUP.json                               written once, with their hashes
  checkpoints/step-00001200/                                    those the run keeps, and the two newest
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from anyformer.core.errors import CheckpointError, CorruptCheckpoint, SettingsError
from anyformer.core.findings import Finding
from anyformer.core.names import MANIFEST
from anyformer.core.protocols import View
from anyformer.runs.backup import Backup
from anyformer.runs.checkpoints import checkpoint_number, list_checkpoints, verify_checkpoint
from anyformer.runs.directory import RunDirectory
from anyformer.runs.remote import RemoteFolder, checkpoints_at, fetch_checkpoint

LISTING = "BACKUP.json"
_ONCE = ("model", "tokenizer")  # folders that do not change while a run goes on
_EACH_TIME = ("settings.yaml", "samples.jsonl", "metrics/metrics.csv", MANIFEST)
STAGING = ".backup"


def backup_of(run: RunDirectory, url: str, view: View, *, drop_beyond: int | None = None) -> Backup:
    """The backup of one run in ``url/NAME``; drop_beyond: the step that the run goes back to.

    Raises SettingsError where that is the run itself or the URL cannot be used, DependencyError.
    """
    require_elsewhere(url, run.path)
    root = RemoteFolder(url)
    copied: dict[str, str] = {}
    return Backup(
        url,
        run.checkpoints,
        run.path / STAGING,
        view,
        place=lambda: _place(root, run),
        others=lambda there: _copy_files(run.path, there, copied),
        drop_beyond=drop_beyond,
    )


def require_elsewhere(url: str, run_path: Path) -> None:
    """SettingsError where a run's backup would be the run itself, or lie in it."""
    if "://" in url and not url.startswith("file://"):
        return
    folder = Path(url.removeprefix("file://")).expanduser().resolve()
    run = run_path.resolve()
    if folder == run.parent or folder.is_relative_to(run):
        what = f"the backup {url} is the folder of the run itself ({run_path})"
        raise SettingsError(what, "a copy there is lost with the run", "another disk, a mounted drive, or a URL")


def identity(manifest: dict[str, Any]) -> str:
    """What tells a run from others of its name; runs of earlier versions have the time they were made."""
    return str(manifest.get("id") or manifest.get("created"))


def _place(root: RemoteFolder, run: RunDirectory) -> RemoteFolder:
    """``NAME``, or ``NAME-2``, -3 … where another run of that name is kept already."""
    number = 1
    while True:
        there = root.inside(run.path.name if number == 1 else f"{run.path.name}-{number}")
        manifest = manifest_at(there)
        if manifest is None:
            if not there.names():
                there.write(MANIFEST, (run.path / MANIFEST).read_bytes())  # whoever comes next sees whose it is
                return there
        elif identity(manifest) == identity(run.manifest):
            return there
        number += 1


def manifest_at(there: RemoteFolder) -> dict[str, Any] | None:
    """The run.json of a copy; None where there is none that can be read."""
    raw = there.read(MANIFEST)
    if raw is None:
        return None
    try:
        manifest = json.loads(raw)
    except ValueError:
        return None
    return manifest if isinstance(manifest, dict) else None


def _copy_files(run_path: Path, there: RemoteFolder, copied: dict[str, str]) -> None:
    """All of a run but its checkpoints; ``copied`` remembers what is there already."""
    if LISTING not in copied:
        files = [path for folder in _ONCE for path in sorted((run_path / folder).rglob("*")) if path.is_file()]
        once = {path.relative_to(run_path).as_posix(): _digest(path.read_bytes()) for path in files}
        for name, digest in once.items():
            there.put(run_path / name, name, digest)
        text = json.dumps({"format": 1, "files": once}, indent=2) + "\n"
        if there.read(LISTING) != text.encode():
            there.write(LISTING, text.encode())
        copied[LISTING] = _digest(text.encode())
    for name in _EACH_TIME:
        with contextlib.suppress(FileNotFoundError):
            content = (run_path / name).read_bytes()
            if copied.get(name) != _digest(content):
                there.write(name, content)
                copied[name] = _digest(content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def bring_newer(run: RunDirectory, url: str, view: View) -> list[Finding]:
    """Copy checkpoints from the run's backup that are newer than its newest good one here; damaged ones are said.

    What cannot be reached is a warning: the run goes on from what is here. Call it with damaged ones set aside.
    """
    findings: list[Finding] = []

    def say(verdict: Any, measured: str, reason: str) -> None:
        findings.append(Finding("backup", verdict, measured, reason=reason))
        view.finding(findings[-1])

    newest = next((checkpoint_number(path.name) or (0, 0) for path in _good(run.path)), (-1, 0))
    try:
        there = _copy_of(RemoteFolder(url), run)
        names = checkpoints_at(there.inside("checkpoints")) if there else []
        for name in names:
            if there is None or (checkpoint_number(name) or (0, 0)) <= newest:
                break
            view.status(f"fetching {name} from the backup")
            try:
                fetch_checkpoint(there.inside("checkpoints"), name, run.checkpoints)
            except CorruptCheckpoint as error:
                say("warn", error.what, "the next older one is tried")
                continue
            say("note", f"{name} came from {there.url}", "it is newer than what is here, or whole where that is not")
            break
    except (SettingsError, ImportError):
        raise
    except Exception as error:  # noqa: BLE001 - file systems raise what they like; the run is here
        say("warn", f"{url} cannot be reached: {error}", "the run goes on from the checkpoints that are here")
    return findings


def _good(run_path: Path) -> list[Path]:
    for path in list_checkpoints(run_path):
        with contextlib.suppress(CorruptCheckpoint):
            verify_checkpoint(path)
            return [path]
    return []


def _copy_of(root: RemoteFolder, run: RunDirectory) -> RemoteFolder | None:
    for name in root.names():
        if name.startswith(run.path.name):
            there = root.inside(name)
            manifest = manifest_at(there)
            if manifest is not None and identity(manifest) == identity(run.manifest):
                return there
    return None


def restore_run(there: RemoteFolder, target: Path, view: View) -> list[Finding]:
    """Bring a run back from its copy: manifest, settings, tokenizer, model, metrics, checkpoints; whole or not at all.

    Damaged checkpoints are left out and said. Raises CorruptCheckpoint where none is intact, or a file of the model
    or the tokenizer is not the one that was copied.
    """
    findings: list[Finding] = []
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        view.status(f"restoring the run from {there.url}")
        _fetch_files(there, temporary)
        bad = []
        for name in checkpoints_at(there.inside("checkpoints")):
            try:
                fetch_checkpoint(there.inside("checkpoints"), name, temporary / "checkpoints")
            except CorruptCheckpoint as error:
                bad.append(error)
                findings.append(Finding("backup", "warn", error.what, reason="left out"))
                view.finding(findings[-1])
        good = list_checkpoints(temporary)
        if not good:
            raise CorruptCheckpoint(
                f"none of the {len(bad)} checkpoints in {there.url} is intact", "\n".join(error.what for error in bad)
            )
        (temporary / "metrics").mkdir(exist_ok=True)
        temporary.chmod(0o755)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    count = f"{len(good)} checkpoint{'s' if len(good) > 1 else ''}, newest {good[0].name}"
    findings.append(Finding("backup", "note", f"the run was restored from {there.url}", reason=count))
    view.finding(findings[-1])
    return findings


def _fetch_files(there: RemoteFolder, folder: Path) -> None:
    listing = there.read(LISTING)
    if listing is None:
        raise CheckpointError(f"{there.url} is not a whole copy of a run: it has no {LISTING}")
    for name, digest in json.loads(listing)["files"].items():
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise CorruptCheckpoint(f"{there.url}/{LISTING} names a file outside the run: {name}")
        with contextlib.suppress(FileNotFoundError):
            there.fetch(name, folder / name)
        found = _digest((folder / name).read_bytes()) if (folder / name).is_file() else "missing"
        if found != digest:
            raise CorruptCheckpoint(f"{there.url}/{name} is damaged", f"sha256 is {found}\nit was   {digest}")
    for name in _EACH_TIME:
        with contextlib.suppress(FileNotFoundError):
            there.fetch(name, folder / name)

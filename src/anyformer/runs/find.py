"""Which run ``--resume auto`` means: the newest of a name, in the folder of the runs or in the backup."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.core.errors import AnyformerError, CheckpointError
from anyformer.core.findings import Finding
from anyformer.core.names import MANIFEST, free_folder, list_runs
from anyformer.core.protocols import View
from anyformer.runs.checkpoints import list_checkpoints
from anyformer.runs.elsewhere import identity, manifest_at, restore_run
from anyformer.runs.remote import RemoteFolder, checkpoints_at


@dataclass(frozen=True)
class _Found:
    created: str
    manifest: dict[str, Any]
    here: Path | None
    there: RemoteFolder | None = None


def find_run(name: str | None, output_dir: str | Path, backup: str | None, view: View) -> Path | None:
    """The folder of the newest run that was started under ``name`` (any run for None), brought back where it is gone.

    A run counts where it has a checkpoint, in ``output_dir`` or in ``backup``; name-2, name-3 … were started under
    ``name``, too, where their manifest says so. None where there is no such run. Raises CheckpointError where nothing
    is here and the backup cannot be asked: a second run beside one that could go on would be a loss.
    """
    parent = Path(output_dir).expanduser()
    local = [found for folder in list_runs(parent) if (found := _local(parent / folder, name)) is not None]
    remote: list[_Found] = []
    if backup is not None:
        try:
            root = RemoteFolder(backup)
            names = root.names()
            remote = [found for folder in names if (found := _remote(root.inside(folder), name)) is not None]
        except AnyformerError:
            raise
        except Exception as error:  # file systems raise what they like
            if not any(list_checkpoints(found.here) for found in local if found.here):
                raise CheckpointError(
                    f"the backup {backup} cannot be reached, so nobody knows whether there is a run to go on with",
                    f"{type(error).__name__}: {error}",
                    "try again; without --resume auto a new run begins",
                ) from error
            view.finding(
                Finding("backup", "warn", f"{backup} cannot be reached: {error}", reason="only runs here count")
            )
    here = {identity(found.manifest): found for found in local}
    usable = [found for found in local if found.here and list_checkpoints(found.here)]
    usable += [here.get(identity(found.manifest), found) for found in remote]
    newest = max(usable, key=lambda found: found.created, default=None)
    if newest is None:
        return None
    if newest.here is not None or newest.there is None:
        return newest.here
    target = free_folder(parent, str(newest.manifest.get("name") or Path(newest.there.path).name))
    restore_run(newest.there, target, view)
    return target


def _local(folder: Path, name: str | None) -> _Found | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return _Found(str(manifest.get("created")), manifest, folder) if _is_of(manifest, name) else None


def _remote(there: RemoteFolder, name: str | None) -> _Found | None:
    folder = there.path.rpartition("/")[2]
    if name is not None and not folder.startswith(name):
        return None  # without asking for its manifest
    manifest = manifest_at(there)
    if manifest is None or not _is_of(manifest, name) or not checkpoints_at(there.inside("checkpoints")):
        return None
    return _Found(str(manifest.get("created")), manifest, None, there)


def _is_of(manifest: Any, name: str | None) -> bool:
    if not isinstance(manifest, dict):
        return False
    started = (manifest.get("settings") or {}).get("name") or manifest.get("name")
    return name is None or started == name

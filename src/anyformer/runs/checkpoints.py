"""Checkpoints as directories whose every byte is hashed.

    checkpoints/step-00001200/
      model.safetensors   the user's module, names as in its own state_dict
      state.pt            everything else: optimizer, schedule, loops, callbacks, RNG
      MANIFEST.json       step, and size and SHA-256 of each file; written last

A flipped bit loads without an error in torch.load and in safetensors alike, so hashes are compared before anything is
loaded. ``state.pt`` is read with ``weights_only=True``, always: a checkpoint is data, it never runs code.

A save writes into a hidden folder beside the target, puts each file on the disk, reads it back and compares it with
what is in memory, writes the manifest, renames the folder and puts that on the disk. A killed process leaves hidden
folders at most (runs/leftovers.py). A run does this in a thread (runs/background.py).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import secrets
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor

from anyformer.core.errors import CheckpointError, CorruptCheckpoint
from anyformer.core.files import sync_folder, write_atomically
from anyformer.core.names import MANIFEST as RUN_MANIFEST
from anyformer.runs.files import HashedFile, cause_of, is_disk_full, read_back, sha256, sync_file
from anyformer.runs.leftovers import went_back
from anyformer.runs.tensors import plain, read_tensors, write_tensors

FORMAT = 1
MODEL = "model.safetensors"
STATE = "state.pt"
MANIFEST = "MANIFEST.json"
FILES = (MODEL, STATE)
PREFIX = "model."  # the adapter holds the user's module under this name
_NAME = re.compile(r"step-(\d+)(?:-v(\d+))?")


class Abandoned(BaseException):
    """Ends a save that another thread has given up; nothing of it stays."""


class DirectoryCheckpointIO(CheckpointIO):
    """Lightning's way to the disk: one directory per checkpoint, verified before it is loaded.

    run_id: whose checkpoints these are; stands in their manifests, so that another run's is not taken for this one's.
    on_saved: told the directory of each checkpoint once it is complete and on the disk.
    """

    def __init__(self, run_id: str | None = None, on_saved: Callable[[Path], None] | None = None) -> None:
        self._run_id = run_id
        self._on_saved = on_saved
        self._left: list[Path] = []  # hidden folders that the disk did not let go of
        self.abandoned = threading.Event()
        """Once it is set, a save that is not complete ends with Abandoned at its next file or piece of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write Lightning's checkpoint as the directory ``path``: complete, on the disk and read back, or not at all.

        Raises CheckpointError where the disk is full or cannot be written, where what was written reads back as
        something else, or where the state holds an object that cannot be loaded without running code.
        """
        target = Path(path)
        state = plain({key: value for key, value in checkpoint.items() if key != "state_dict"})
        manifest: dict[str, Any] = {"format": FORMAT, "step": int(checkpoint.get("global_step", 0))}
        manifest |= {} if self._run_id is None else {"run": self._run_id}
        left, self._left = self._left, []
        for folder in left:
            try:
                if not went_back(folder):
                    self._discard(folder)
            except OSError:
                self._left.append(folder)
        # named before it is there: whatever comes in between, it is discarded
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir(mode=0o700)
            _write(temporary, checkpoint.get("state_dict", {}), state, manifest, self._go_on)
            replaced = _put_in_place(temporary, target)
        except CheckpointError:
            self._discard(temporary)
            raise
        except (OSError, RuntimeError) as error:  # safetensors' and torch's native writers raise RuntimeErrors
            self._discard(temporary)
            raise _cannot_save(target, checkpoint, error) from error
        except BaseException:  # Ctrl-C: nothing half-written stays
            self._discard(temporary)
            raise
        self._discard(replaced)
        if self._on_saved is not None:
            self._on_saved(target)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify the directory, then return the dictionary that Lightning saved (tensors on ``map_location`` or CPU).

        ``weights_only`` is Lightning's argument; this reader is always that strict. Raises CorruptCheckpoint.
        """
        folder = Path(path)
        verify_checkpoint(folder)
        device = "cpu" if map_location is None else map_location
        weights, prefix, state = _read(folder, device)
        state_dict = {prefix + name: tensor for name, tensor in weights.items()}
        if isinstance(device, (str, torch.device)) and torch.device(device).type != "cpu":
            state_dict = {name: tensor.to(device) for name, tensor in state_dict.items()}
        state_dict |= state.pop("other_state", {})
        return {**state, "state_dict": state_dict}

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint's directory; anything that is not one is left alone (CheckpointError)."""
        folder = Path(path)
        if not folder.exists():
            return
        if folder.is_symlink() or not (folder / MANIFEST).is_file():
            raise CheckpointError(f"{folder} is not a checkpoint; it is left as it is")
        # first out of sight in one step: a folder that is half removed would be taken for a damaged checkpoint
        gone = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.gone")
        try:
            folder.rename(gone)
        except OSError as error:
            what = f"the checkpoint {folder.name} could not be removed"
            raise CheckpointError(what, f"{folder}: {error}", "see whether the folder is writable") from error
        self._discard(gone)

    def _go_on(self) -> None:
        if self.abandoned.is_set():
            raise Abandoned

    def _discard(self, folder: Path | None) -> None:
        """Remove a hidden folder; what cannot be removed now is tried again before the next save."""
        if folder is None:
            return
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:  # once more, where a call failed, and where a second Ctrl-C came in between
            shutil.rmtree(folder, ignore_errors=True)
        self._left += [left for left in {folder, folder.with_suffix(".old")} if left.exists()]


def verify_checkpoint(folder: str | Path) -> dict[str, Any]:
    """Compare size and SHA-256 of every file with MANIFEST.json and return the manifest.

    Raises CorruptCheckpoint, naming the file and what differs; CheckpointError where there is no such directory, or
    where it cannot be read for a reason that says nothing of its content.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint {folder}")
    try:
        return _verified(folder)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOENT, errno.ENODATA):
            what = f"the checkpoint {folder.name} is damaged: it cannot be read"
            raise CorruptCheckpoint(what, detail=f"{folder}: {error}") from error
        raise CheckpointError(f"the checkpoint {folder.name} cannot be read", detail=f"{folder}: {error}") from error


def _verified(folder: Path) -> dict[str, Any]:
    manifest = _read_manifest(folder)
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise CorruptCheckpoint(f"the checkpoint {folder.name} is damaged: {name} is missing", detail=str(folder))
        size = file.stat().st_size
        if size != expected["size"]:
            what = f"the checkpoint {folder.name} is damaged: {name} has {size:,} bytes, not {expected['size']:,}"
            raise CorruptCheckpoint(what, detail=str(folder))
        found = sha256(file)
        if found != expected["sha256"]:
            raise CorruptCheckpoint(
                f"the checkpoint {folder.name} is damaged: {name} does not match its hash",
                detail=f"{file}\nsha256 is {found}\nit was   {expected['sha256']}",
            )
    return manifest


def require_own(folder: Path, run_path: str | Path) -> dict[str, Any]:
    """The manifest of a checkpoint that is intact and where it belongs; CorruptCheckpoint where it is not.

    Whole checkpoints can be swapped, too: all hashes match in one of another step or of another run.
    """
    manifest = verify_checkpoint(folder)
    if manifest["step"] != step_of(folder):
        what = f"the checkpoint {folder.name} is another one: its manifest is of step {manifest['step']:,}"
        raise CorruptCheckpoint(what, detail=str(folder))
    try:
        run = json.loads((Path(run_path) / RUN_MANIFEST).read_text(encoding="utf-8")).get("id")
    except (OSError, ValueError, AttributeError):
        return manifest  # a folder of checkpoints that is no run of ours
    if None not in (run, manifest.get("run")) and run != manifest["run"]:
        what = f"the checkpoint {folder.name} is another run's"
        raise CorruptCheckpoint(what, detail=f"{folder}\nof run {manifest['run']}, not {run}")
    return manifest


def list_checkpoints(run_path: str | Path) -> list[Path]:
    """Directories of a run's checkpoints, newest first by step; unfinished and damaged ones are not among them."""
    return checkpoints_in(Path(run_path) / "checkpoints")


def checkpoints_in(folder: Path) -> list[Path]:
    """As ``list_checkpoints``, of the folder that holds them."""
    if not folder.is_dir():
        return []
    found = [
        (number, entry)
        for entry in folder.iterdir()
        if (number := checkpoint_number(entry.name)) is not None and entry.is_dir()
    ]
    return [entry for _, entry in sorted(found, reverse=True)]


def checkpoint_number(name: str) -> tuple[int, int] | None:
    """Step and version in a checkpoint's name, by which checkpoints are ordered; None where it is no such name."""
    match = _NAME.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2] or 0))


def step_of(folder: Path) -> int:
    """The optimizer step in a checkpoint's name."""
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise CheckpointError(f"{folder} is not named as a checkpoint", "expected: step-00001200")
    return int(match[1])


def newest_good(run_path: str | Path, on_bad: Callable[[Path, CorruptCheckpoint], None] | None = None) -> Path:
    """The newest checkpoint whose bytes are those that this run saved at that step.

    A damaged one is renamed to NAME.damaged and reported to ``on_bad(its new path, the error)``.
    Raises CheckpointError where there are no checkpoints, CorruptCheckpoint where all are damaged.
    """
    return newest_good_in(Path(run_path) / "checkpoints", on_bad, owner=run_path)


def newest_good_in(
    folder: Path, on_bad: Callable[[Path, CorruptCheckpoint], None] | None = None, owner: str | Path | None = None
) -> Path:
    """As ``newest_good``, of the folder that holds the checkpoints; ``owner`` is what the errors name."""
    owner = folder if owner is None else owner
    candidates = checkpoints_in(folder)
    if not candidates:
        raise CheckpointError(f"{owner} has no checkpoint", fix="it stopped before its first one; start anew")
    bad: list[CorruptCheckpoint] = []
    for candidate in candidates:
        try:
            require_own(candidate, owner)
        except CheckpointError as error:
            if not candidate.exists():
                continue  # its run is being trained, and let it go
            if not isinstance(error, CorruptCheckpoint):
                raise
            bad.append(error)
            aside = set_aside(candidate)
            if on_bad is not None:
                on_bad(aside, error)
        else:
            return candidate
    if not bad:
        raise CheckpointError(f"the checkpoints of {owner} were removed meanwhile", fix="try again")
    raise CorruptCheckpoint(
        f"none of the {len(bad)} checkpoints of {owner} is intact",
        detail="\n".join(error.what for error in bad),
        fix="restore the run's folder from a backup, or start the run anew",
    )


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The module's state dict out of a checkpoint, verified: names as the module has them, tied ones included."""
    folder = Path(folder)
    verify_checkpoint(folder)
    weights, prefix, state = _read(folder, "cpu")
    other = state.get("other_state", {})
    own = {name.removeprefix(prefix): value for name, value in other.items() if name.startswith(prefix)}
    return weights | own


def _read(folder: Path, device: Any) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """The weights (on the CPU), the prefix that their names had, and all else."""
    try:
        return *read_tensors(folder / MODEL), torch.load(folder / STATE, map_location=device, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:  # the last: it would run code
        raise CheckpointError(f"the checkpoint {folder} cannot be loaded", detail=str(error)) from error


def _write(
    folder: Path,
    state_dict: dict[str, Any],
    state: dict[str, Any],
    manifest: dict[str, Any],
    go_on: Callable[[], None],
) -> None:
    go_on()
    prefix = PREFIX if any(name.startswith(PREFIX) for name in state_dict) else ""
    weights = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    expected = {}
    left, expected[MODEL] = write_tensors(folder / MODEL, weights, prefix=prefix)
    # what the file of tensors cannot hold (extra state, rare dtypes), and the adapter's own state
    other = {prefix + name: weights[name] for name in left}
    other |= {name: value for name, value in state_dict.items() if not name.startswith(prefix)}
    expected[STATE] = _write_state(folder / STATE, {**state, "other_state": plain(other, "state_dict")}, go_on)
    files = {}
    for name in (MODEL, STATE):
        go_on()
        sync_file(folder / name)
        go_on()
        read_back(folder / name, expected[name])
        files[name] = {"sha256": expected[name], "size": (folder / name).stat().st_size}
    go_on()
    manifest["files"] = files
    manifest["sha256"] = _digest(manifest)
    write_atomically(folder / MANIFEST, _text(manifest))
    read_back(folder / MANIFEST, hashlib.sha256(_text(manifest)).hexdigest())


def _write_state(file: Path, state: dict[str, Any], go_on: Callable[[], None]) -> str:
    """Returns the SHA-256 of what was written."""
    with file.open("wb") as stream:
        hashed = HashedFile(stream, go_on)
        try:
            torch.save(state, hashed)  # type: ignore[arg-type]  # write and flush are all it calls
        except RuntimeError:  # "unexpected pos", whatever ended the write: a full disk, or a second Ctrl-C
            if hashed.error is not None:
                raise hashed.error from None
            raise
        return hashed.sha256()


def _text(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _digest(manifest: dict[str, Any]) -> str:
    # the manifest is hashed too: a flipped bit in its step must not go unseen
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    what = f"the checkpoint {folder.name} is damaged: {MANIFEST}"
    if not file.is_file():
        raise CorruptCheckpoint(f"{what} is missing (it is written last)", detail=str(folder))
    try:
        raw = file.read_bytes()
        manifest = json.loads(raw)
        intact = manifest["sha256"] == _digest(manifest) and raw == _text(manifest)
        intact = intact and set(manifest["files"]) == {MODEL, STATE}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptCheckpoint(f"{what} is not readable", detail=f"{file}: {error}") from error
    if not intact:
        raise CorruptCheckpoint(f"{what} does not match its hash", detail=str(file))
    if manifest["format"] > FORMAT:
        raise CheckpointError(f"{file} has format {manifest['format']}; this version reads up to {FORMAT}")
    return dict(manifest)


def _put_in_place(temporary: Path, target: Path) -> Path | None:
    """Returns where the same step's earlier checkpoint went, if there was one."""
    temporary.chmod(0o755)
    aside = None
    if target.exists():  # the same step saved again
        if not (target / MANIFEST).is_file():
            raise CheckpointError(f"{target} exists and is not a checkpoint; it is left as it is")
        aside = target.with_name(f"{temporary.name.removesuffix('.tmp')}.old")
    try:
        if aside is not None:
            target.rename(aside)
        temporary.rename(target)
        sync_folder(target.parent)
    except BaseException:  # back as it was, as far as the disk lets us
        with contextlib.suppress(OSError):
            if not temporary.exists():
                target.rename(temporary)
            if aside is not None and aside.exists():
                aside.rename(target)
        raise
    return aside


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint to NAME.damaged; returns where it is then."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.damaged" + (f"-{number}" if number > 1 else ""))).exists():
        number += 1
    with contextlib.suppress(OSError):  # a run on a read-only disk can still be evaluated
        folder.rename(aside)
        return aside
    return folder


def _cannot_save(target: Path, checkpoint: dict[str, Any], error: Exception) -> CheckpointError:
    tensors = [value for value in checkpoint.get("state_dict", {}).values() if isinstance(value, Tensor)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
    kept = []
    with contextlib.suppress(OSError):  # too many open files: nothing can be listed either
        kept = list_checkpoints(target.parent.parent)
    untouched = "earlier checkpoints are untouched" + (f" (newest: {kept[0].name})" if kept else "")
    try:
        free = f"{shutil.disk_usage(target.parent).free / 1e6:,.1f} MB"
    except OSError:
        free = "unknown"
    detail = f"in {target.parent}; the weights alone take {size:,.1f} MB, free: {free}\n{untouched}"
    if is_disk_full(error):
        what = f"no space left to save the checkpoint {target.name}"
        return CheckpointError(what, detail, "free some space and resume, or keep fewer with --save_top_k 1")
    return CheckpointError(
        f"the checkpoint {target.name} could not be written",
        f"{detail}\n{cause_of(error)}",
        "see whether the folder is writable",
    )

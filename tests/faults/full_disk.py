"""A file system of a few hundred kilobytes that is really full, in a mount namespace of its own."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from anyformer.core.errors import CheckpointError
from anyformer.runs.checkpoints import DirectoryCheckpointIO, newest_good, verify_checkpoint
from tests.faults.io_cases import path_of
from tests.faults.processes import FLAGS, difference, outcome, prepare

_NEW_USER, _NEW_MOUNTS, _PRIVATE, _REMOUNT = 0x10000000, 0x00020000, (1 << 18) | 16384, 32


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None) -> None:
    given = [text.encode() if text is not None else None for text in (source, target, kind)]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(*given, ctypes.c_ulong(flags), options.encode() if options else None):
        raise OSError(ctypes.get_errno(), f"mount {kind} on {target}")


def _small_disk(folder: Path, kilobytes: int) -> str | None:
    """Mount it on ``folder``; why the kernel refuses, or None."""
    folder.mkdir(parents=True, exist_ok=True)
    user, group = os.getuid(), os.getgid()
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS if user == 0 else _NEW_USER | _NEW_MOUNTS):
            raise OSError(ctypes.get_errno(), "unshare")
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        _mount("none", "/", None, _PRIVATE, None)
        _mount("tmpfs", str(folder), "tmpfs", 0, f"size={kilobytes}k")
    except OSError as error:
        return f"the kernel refuses a small tmpfs: {error}"
    return None


def _larger(folder: Path, kilobytes: int) -> None:
    _mount("tmpfs", str(folder), "tmpfs", _REMOUNT, f"size={kilobytes}k")


def _big(step: int) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"model.a": torch.full((25_000,), float(step))}, "note": step}


def saves_on_a_full_disk(folder: str) -> dict[str, Any]:
    """Save until it is full, at every fill level from empty to full; make room; save again."""
    disk = Path(folder) / "disk"
    if refused := _small_disk(disk, 400):
        return {"refused": refused}
    problems, io, full = [], DirectoryCheckpointIO(), 0
    levels = range(0, 280, 8)
    for level in levels:
        run = disk / "run"
        shutil.rmtree(run, ignore_errors=True)
        io.save_checkpoint(_big(1), path_of(run, 1))
        (disk / "filler").write_bytes(bytes(1024 * level))
        try:
            io.save_checkpoint(_big(2), path_of(run, 2))
            verify_checkpoint(path_of(run, 2))
        except CheckpointError as error:
            full += 1
            if "no space left" not in str(error) or "newest: step-00000001" not in str(error):
                problems.append(f"{level} kB: {error}")
        left = [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
        if left or not io.load_checkpoint(path_of(run, 1))["state_dict"]["model.a"].eq(1).all():
            problems.append(f"{level} kB: left {left}")
        (disk / "filler").unlink()
        io.save_checkpoint(_big(3), path_of(run, 3))
        if newest_good(run) != path_of(run, 3):
            problems.append(f"{level} kB: a later save is not the newest")
    return {"levels": len(levels), "full": full, "problems": problems}


def _pages(path: Path) -> int:
    """What it takes on a tmpfs, in pages of 4 kB."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(-(-file.stat().st_size // 4096) for file in files)


def _train(argv: list[str], said: Path) -> int:
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    from anyformer import cli

    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    code = cli.main(["train", *argv])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_on_a_full_disk(folder: str, whole: str) -> dict[str, Any]:
    """A run whose disk fills up while it trains; then there is room, and it is resumed."""
    base = Path(folder)
    prepare(base)
    disk, run, said = base / "runs", base / "runs" / "full", base / "said.txt"
    # room for the first checkpoint and half of the second
    parts = {path.name: _pages(path) for path in Path(whole).iterdir()}
    one = parts.pop("checkpoints") // len(list((Path(whole) / "checkpoints").iterdir()))
    parts.pop("report.html")
    if refused := _small_disk(disk, 4 * (sum(parts.values()) + one + one // 2)):
        return {"refused": refused}
    os.chdir(base)
    code = _train(["model.py", *FLAGS, "--name", "full"], said)
    first, kept = said.read_text(), sorted(path.name for path in (run / "checkpoints").iterdir())
    _larger(disk, 8000)
    again = _train(["--resume", "runs/full"], said)
    problem = difference(outcome(run), outcome(Path(whole))) if again == 0 else said.read_text()[-800:]
    return {"code": code, "said": first, "kept": kept, "resumed": again, "problem": problem}

"""Faults at the I/O calls of a save: which cases there are, and what must hold after each.

Runs in a process under the shim. What is expected is computed here, with hashlib and safetensors alone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from anyformer.core.errors import CheckpointError
from anyformer.runs.background import BackgroundCheckpointIO
from anyformer.runs.checkpoints import DirectoryCheckpointIO, list_checkpoints, newest_good
from tests.faults.server import (
    CHANGES,
    CHMOD,
    CLOSE,
    COUNT,
    CREATE,
    EVERYTHING,
    FAIL,
    LISTDIR,
    LOSE,
    MKDIR,
    OPEN,
    RENAME,
    SHORT,
    SYNC,
    TRUNCATE,
    WRITE,
    Fault,
    disarm,
)

# what the fault is called: (the calls it can meet, what happens, the errno)
FAULTS: dict[str, tuple[int, int, int]] = {
    "ENOSPC": (CREATE | WRITE | SYNC | RENAME | MKDIR | CLOSE, FAIL, errno.ENOSPC),
    "EIO": (EVERYTHING, FAIL, errno.EIO),
    "EROFS": (CHANGES & ~WRITE & ~SYNC, FAIL, errno.EROFS),
    "EMFILE": (OPEN | CREATE | LISTDIR, FAIL, errno.EMFILE),
    "short write": (WRITE, SHORT, 0),
    "lost write": (WRITE, LOSE, 0),
    "failed fsync": (SYNC, FAIL, errno.EIO),
    "failed rename": (RENAME, FAIL, errno.EXDEV),
}


def state(step: int, version: int = 0) -> dict[str, Any]:
    """What Lightning hands over at a step, a small one."""
    made = torch.Generator().manual_seed(1000 * version + step)
    weight = torch.randn(17, 5, generator=made)
    tensors = {"model.a.weight": weight, "model.b.weight": weight, "model.c": torch.randn(300, generator=made)}
    moments = {"exp_avg": torch.randn(17, 5, generator=made), "step": torch.tensor(float(step))}
    return {
        "global_step": step,
        "state_dict": {**tensors, "seen": torch.tensor(step)},
        "optimizer_states": [{"state": {0: moments}}],
        "note": f"{step}/{version}",
    }


def path_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def problem_with(folder: Path, step: int, version: int = 0) -> str | None:
    """Why the directory is not the checkpoint of that step and version; None where it is, to the last bit."""
    try:
        manifest = json.loads((folder / "MANIFEST.json").read_bytes())
        for name in ("model.safetensors", "state.pt"):
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != manifest["files"][name]["sha256"]:
                return f"{folder.name}/{name} has another hash"
        expected = state(step, version)
        weights = load_file(folder / "model.safetensors")
        if any(not torch.equal(weights[name], expected["state_dict"][f"model.{name}"]) for name in weights):
            return f"{folder.name} has other weights"
        rest = torch.load(folder / "state.pt", weights_only=True)
        if (manifest["step"], rest["note"], sorted(weights)) != (step, f"{step}/{version}", ["a.weight", "c"]):
            return f"{folder.name} holds {manifest['step']}, {rest['note']}, {sorted(weights)}"
        moments, theirs = rest["optimizer_states"][0]["state"][0], expected["optimizer_states"][0]["state"][0]
        if any(not torch.equal(moments[name], theirs[name]) for name in theirs):
            return f"{folder.name} has another state of the optimizer"
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as error:
        return f"{folder.name}: {error!r}"
    return None


IO = DirectoryCheckpointIO | BackgroundCheckpointIO
Save = Callable[[IO, Path], None]


def _done(io: IO) -> None:
    if isinstance(io, BackgroundCheckpointIO):
        io.wait()


def _first(io: IO, run: Path) -> None:
    io.save_checkpoint(state(20), path_of(run, 20))
    _done(io)


def _again(io: IO, run: Path) -> None:
    io.save_checkpoint(state(20, 1), path_of(run, 20))
    _done(io)


def _and_remove(io: IO, run: Path) -> None:
    io.save_checkpoint(state(20), path_of(run, 20))
    io.remove_checkpoint(path_of(run, 5))
    _done(io)


# what is there before, and what is done under the fault
SCENARIOS: dict[str, tuple[tuple[int, ...], Save]] = {
    "the first save": ((), _first),
    "a later save": ((5, 10), _first),
    "the same step again": ((10, 20), _again),
    "a save that lets an older one go": ((5, 10), _and_remove),
}


@dataclass(frozen=True)
class Case:
    """One fault at one call of one scenario. thread: written by a run's thread, as it is in a run."""

    scenario: str
    fault: str
    at: int
    sticky: bool
    thread: bool

    def __str__(self) -> str:
        where = "in a thread, " if self.thread else ""
        return f"{where}{self.scenario}, {self.fault} at call {self.at}{' and all later ones' if self.sticky else ''}"


def prepared(base: Path, scenario: str, *, thread: bool) -> tuple[Path, IO, Save]:
    """A run with the scenario's checkpoints."""
    shutil.rmtree(base, ignore_errors=True)
    before, save = SCENARIOS[scenario]
    run, plain = base / "run", DirectoryCheckpointIO()
    run.mkdir(parents=True)
    for step in before:
        plain.save_checkpoint(state(step), path_of(run, step))
    return run, BackgroundCheckpointIO(plain) if thread else plain, save


def calls_of(base: Path, scenario: str, kinds: int = EVERYTHING) -> list[str]:
    """The I/O calls of a scenario without a fault."""
    run, io, save = prepared(base, scenario, thread=True)
    Fault(str(run), kinds, COUNT).arm()
    save(io, run)
    return disarm()[1]


def all_cases(base: Path) -> list[Case]:
    """Each fault at each call of each scenario, once and from there on, in the thread that asks and in a run's own."""
    cases = []
    for scenario in SCENARIOS:
        for fault, (kinds, _, _) in FAULTS.items():
            for at in range(1, len(calls_of(base, scenario, kinds)) + 1):
                both = (False, True)
                cases += [Case(scenario, fault, at, sticky, thread) for sticky in both for thread in both]
    return cases


def problems_of(case: Case, base: Path) -> list[str]:
    """What does not hold after the fault; empty where all does."""
    run, io, save = prepared(base, case.scenario, thread=case.thread)
    kinds, action, number = FAULTS[case.fault]
    error: BaseException | None = None
    Fault(str(run), kinds, action, case.at, number, case.sticky).arm()
    try:
        save(io, run)
    except BaseException as raised:  # noqa: BLE001 (any other class is what is looked for)
        error = raised
    finally:
        _, trace = disarm()
    met = trace[case.at - 1] if len(trace) >= case.at else "nothing"
    found = _message(case, error) + _what_stands(case, run, error)
    left = [entry.name for entry in (run / "checkpoints").glob("*")] if (run / "checkpoints").exists() else []
    left = [name for name in left if len(name) != len("step-00000000") or name.startswith(".")]
    if left and not case.sticky:
        found.append(f"left behind: {left}")
    try:
        io.save_checkpoint(state(99), path_of(run, 99))
        _done(io)
    except CheckpointError as later:
        found.append(f"a later save fails: {later!r}")
    if bad := problem_with(path_of(run, 99), 99):
        found.append(f"after a later save: {bad}")
    if (
        20 in SCENARIOS[case.scenario][0]
        and problem_with(path_of(run, 20), 20, 0)
        and problem_with(path_of(run, 20), 20, 1)
    ):
        found.append("after a later save: step-00000020 did not come back")
    strange = [
        str(path.relative_to(run)) for path in run.rglob("*") if path.name.startswith(".") or ".damaged" in path.name
    ]
    if strange:
        found.append(f"still there after a later save: {strange}")
    return [f"{case} ({met}): {problem}" for problem in found]


def _message(case: Case, error: BaseException | None) -> list[str]:
    if error is None:
        return []
    if not isinstance(error, CheckpointError):
        return [f"not a CheckpointError: {error!r}"]
    said = str(error)
    if "could not be removed" in said:
        return []
    words = {"ENOSPC": ["no space left"], "lost write": ["read back"]}.get(case.fault, [])
    return [f"the message does not say {word!r}: {said}" for word in [*words, "step-000000"] if word not in said]


def _what_stands(case: Case, run: Path, error: BaseException | None) -> list[str]:
    before, save = SCENARIOS[case.scenario]
    found = []
    version = 1 if save is _again else 0
    new = problem_with(path_of(run, 20), 20, version)
    if error is None and new:
        found.append(f"no error, but {new}")
    listed = list_checkpoints(run)
    good: list[Path] = []
    for folder in listed:
        step = int(folder.name.removeprefix("step-"))
        if step == 20 and version and problem_with(folder, 20, 0):
            bad = problem_with(folder, 20, 1)
        else:
            bad = problem_with(folder, step)
        found += [f"taken for a checkpoint: {bad}"] if bad else []
        good += [] if bad else [folder]
    gone = {path_of(run, step) for step in before} - set(listed)
    if list(
        (run / "checkpoints").glob(".step-00000020.*.old")
    ):  # no rename works any more; a later save brings it back
        gone.discard(path_of(run, 20) if case.sticky and error else run)
    if gone - ({path_of(run, 5)} if save is _and_remove else set()):
        found.append(f"gone: {sorted(path.name for path in gone)}")
    try:
        newest = newest_good(run)
        if not good or newest != good[0]:
            found.append(f"the newest good one is {newest.name}, of {[path.name for path in listed]}")
    except CheckpointError as none:
        if before:
            found.append(f"none is good: {none!r}")
    return found


def run_cases(base: str, seed: int, share: int | None = None) -> dict[str, Any]:
    """All cases, or ``share`` of them drawn from the seed (each scenario and fault among them)."""
    cases = all_cases(Path(base))
    chosen = cases
    if share is not None:
        drawn = random.Random(seed)
        chosen = [
            drawn.choice([case for case in cases if (case.scenario, case.fault) == pair])
            for pair in sorted({(case.scenario, case.fault) for case in cases})
        ]
        chosen += drawn.sample(cases, max(0, share - len(chosen)))
    problems = [problem for case in chosen for problem in problems_of(case, Path(base))]
    return {"cases": len(chosen), "of": len(cases), "problems": problems}


def order_of_a_save(base: str) -> list[str]:
    """The calls of one save under names without their random part."""
    calls = calls_of(Path(base), "a later save", CHANGES & ~CHMOD & ~TRUNCATE)
    names = [re.sub(r"\.step-00000020\.\w{8}\.tmp", "NEW", call.replace("/checkpoints", "")) for call in calls]
    return [
        re.sub(r"\.MANIFEST\.json\.\w{8}\.tmp", "manifest", re.sub(r"\.tmp\w{6}$", "model", name)) for name in names
    ]

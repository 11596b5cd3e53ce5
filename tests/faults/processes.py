"""Real training processes that are killed or interrupted at points drawn from a seed, and what must hold afterwards."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from anyformer.runs.table import MEASURED
from tests.faults.server import EVERYTHING, KILL, SIGNAL, Fault, Fresh, Job, Server

MODEL = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, vocab_size=40, width=16):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.hidden = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, tokens):
        x = self.embedding(tokens)
        past = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return self.head(self.dropout(torch.tanh(self.hidden(torch.cat([x, past], -1)))))
"""
STEPS = 60  # an epoch has about 40: the last third is in the second one
FLAGS = ("--data", "text.txt", "--max_steps", str(STEPS), "--batch_size", "8", "--max_length", "16")
FLAGS += ("--precision", "32", "--eval_every", "5", "--log_every", "1", "--save_top_k", "2", "--learning_rate", "0.3")


def prepare(folder: Path) -> None:
    """Model and text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(MODEL)
    drawn = random.Random(1)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "far"]
    (folder / "text.txt").write_text(" ".join(drawn.choices(words, k=1500)))


@dataclass(frozen=True)
class Outcome:
    """All of a finished run that must be as in one that was never stopped."""

    weights: str
    kept: tuple[str, ...]
    rows: tuple[tuple[tuple[str, str], ...], ...]
    samples: tuple[tuple[int, str], ...]
    results: tuple[tuple[str, Any], ...]


def outcome(run: Path) -> Outcome:
    """Read with other means than ours; the file of tensors has a header of no fixed order, so tensors are hashed."""
    kept = tuple(sorted(path.name for path in (run / "checkpoints").iterdir()))
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(run / "checkpoints" / max(kept) / "model.safetensors").items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    with (run / "metrics" / "metrics.csv").open() as stream:
        rows = tuple(
            tuple((key, value) for key, value in row.items() if key not in MEASURED) for row in csv.DictReader(stream)
        )
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["state"] == "finished"
    results = {
        key: manifest["results"][key]
        for key in ("steps", "val_loss", "best_checkpoint", "best_val_loss")
        if key in manifest["results"]
    }
    return Outcome(
        digest.hexdigest(),
        kept,
        rows,
        tuple((sample["step"], sample["text"]) for sample in samples),
        tuple(sorted(results.items())),
    )


def difference(ours: Outcome, theirs: Outcome) -> str | None:
    """The first thing that differs."""
    for name in ("weights", "kept", "rows", "samples", "results"):
        mine, unbroken = getattr(ours, name), getattr(theirs, name)
        if mine != unbroken:
            if name in ("rows", "samples"):
                pairs = [pair for pair in zip(mine, unbroken, strict=False) if pair[0] != pair[1]]
                return f"{name}: {len(mine)}, unbroken {len(unbroken)}; {pairs[:1]}"
            return f"{name}: {mine}, unbroken {unbroken}"
    return None


class Runs:
    """Starts runs in one folder and compares each with one that was never stopped."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        prepare(folder)
        job = self.start("whole", trace=folder / "calls.txt")
        assert job.wait(300) == 0, job.output()
        self.whole = outcome(self.path("whole"))
        self.calls = (folder / "calls.txt").read_text().splitlines()
        """Every I/O call of the unbroken run in its folder."""
        saves = [i for i, call in enumerate(self.calls, 1) if " checkpoints/" in call]
        second_epoch = next(i for i, call in enumerate(self.calls, 1) if "step-00000045" in call)
        self.points = {
            "in a save": saves,
            "before the first checkpoint": list(range(1, saves[0] + 30)),
            "in epoch 2": list(range(second_epoch, len(self.calls) + 1)),
            "anywhere": list(range(1, len(self.calls) + 1)),
        }

    def path(self, name: str) -> Path:
        """The run's folder."""
        return self.folder / "runs" / name

    def start(self, name: str, fault: tuple[int, int, int, bool] | None = None, trace: Path | None = None) -> Job:
        """Begin a run, or go on with it. fault: action, at which call in its folder, number, sticky."""
        folder = f"{self.path(name)}/"
        armed = Fault(folder, EVERYTHING, *fault) if fault else Fault(folder)
        if self.resumable(name):
            return self.server.train("--resume", f"runs/{name}", cwd=self.folder, fault=armed, trace=trace)
        shutil.rmtree(self.path(name), ignore_errors=True)
        return self.server.train("model.py", *FLAGS, "--name", name, cwd=self.folder, fault=armed, trace=trace)

    def resumable(self, name: str) -> bool:
        """Whether a checkpoint has its name: by the folder alone."""
        return any((self.path(name) / "checkpoints").glob("step-????????")) or any(
            (self.path(name) / "checkpoints").glob(".step-*.old")
        )

    def refuses_to_resume(self, name: str) -> str | None:
        """What is wrong with the answer where nothing was saved before the kill."""
        if self.resumable(name) or not self.path(name).exists():
            return None
        job = self.server.train("--resume", f"runs/{name}", cwd=self.folder)
        code, said = job.wait(), job.output()
        clear = "no checkpoint" in said or "is not a run" in said or "cannot be read" in said or "cannot resume" in said
        return None if code in (1, 2) and clear and "Traceback" not in said else f"ended with {code}: {said[-600:]}"

    def finish(self, name: str, *, kept_too: bool = True) -> str | None:
        """Go on to the end; what differs from the unbroken run."""

        def against_the_whole() -> str | None:
            ours = outcome(self.path(name))
            return difference(ours if kept_too else replace(ours, kept=self.whole.kept), self.whole)

        job = self.start(name)
        code, said = job.wait(), job.output()
        if code == 2 and "is finished at step" in said:
            return against_the_whole()
        if code:
            return f"resuming ended with {code}: {said[-800:]}"
        if "damaged" in said or "Traceback" in said:
            return f"resuming said: {said[-800:]}"
        hidden = [str(path) for path in self.path(name).rglob(".*") if path.name != ".lock"]
        if hidden:
            return f"left behind: {hidden}"
        return against_the_whole()


def kinds_of(count: int) -> list[str]:
    """A third in saves, some before the first checkpoint, some in the second epoch, some by the clock.

    Each 20th begins as a user begins it, with an interpreter of its own; the others are forked from one that is ready.
    """
    pattern = ["in a save", "anywhere", "in epoch 2", "in a save", "before the first checkpoint", "by the clock"]
    return ["in a fresh process" if index % 20 == 19 else pattern[index % len(pattern)] for index in range(count)]


def kill_once(runs: Runs, name: str, kind: str, drawn: random.Random) -> list[str]:
    """Kill one run, resume it, compare."""
    job: Job | Fresh
    if kind == "by the clock":
        delay = drawn.uniform(0, 3)
        job, what = runs.start(name), f"after {delay:.3f} s"
        time.sleep(delay)
        job.kill(signal.SIGKILL)
    elif kind == "in a fresh process":
        at, folder = drawn.choice(runs.points["anywhere"]), f"{runs.path(name)}/"
        fault = Fault(folder, EVERYTHING, KILL, at)
        job = runs.server.fresh("model.py", *FLAGS, "--name", name, cwd=runs.folder, fault=fault)
        what = f"at call {at} of {len(runs.calls)}"
    else:
        at = drawn.choice(runs.points[kind])
        job, what = runs.start(name, (KILL, at, 0, False)), f"at call {at} of {len(runs.calls)}, {runs.calls[at - 1]!r}"
    code = job.wait()
    found = [] if code == -signal.SIGKILL or kind == "by the clock" else [f"ended with {code}: {job.output()[-500:]}"]
    problems = [*found, runs.refuses_to_resume(name), runs.finish(name)]
    found = [f"killed {kind}, {what}: {problem}" for problem in problems if problem]
    if not found:
        shutil.rmtree(runs.path(name))
    return found


def kill_in_a_chain(runs: Runs, name: str, kills: int, drawn: random.Random, first: str | None = None) -> list[str]:
    """Kill a run again and again, each time a little further on, then let it end. first: where it begins."""
    points = [drawn.choice(runs.points[first])] if first else []
    if first and runs.start(name, (KILL, points[0], 0, False)).wait() != -signal.SIGKILL:
        return [f"it was not killed at {points}"]
    for _ in range(kills):
        at = drawn.randint(1, len(runs.calls) // 6)
        job = runs.start(name, (KILL, at, 0, False))
        points.append(at)
        if job.wait() == 0:
            break  # it came to its end before that call
        if job.code != -signal.SIGKILL:
            return [f"chain of kills at {points}: ended with {job.code}: {job.output()[-500:]}"]
    problem = runs.finish(name)
    if problem:
        return [f"chain of kills at {points}: {problem}"]
    shutil.rmtree(runs.path(name))
    return []


def signalled(runs: Runs, name: str, drawn: random.Random, *, twice: bool) -> list[str]:
    """SIGTERM or SIGINT at a call inside training: saved, and 143 or 130; a second one at the next call: at once."""
    number = drawn.choice([signal.SIGTERM, signal.SIGINT])
    first = next(i for i, call in enumerate(runs.calls, 1) if "metrics.csv" in call)
    # the last samples come after training, once the run was measured
    last = max(i for i, call in enumerate(runs.calls, 1) if "write samples.jsonl" in call)
    at = drawn.randint(first, last)
    where = f"{number.name}{' twice' if twice else ''} at call {at} of {len(runs.calls)}, {runs.calls[at - 1]!r}"
    job = runs.start(name, (SIGNAL, at, int(number), twice))
    code, said = job.wait(), job.output()
    problems: list[str | None] = []
    if code != 128 + number:
        problems.append(f"ended with {code}, not {128 + number}: {said[-600:]}")
    if not twice and "saved as" not in said:
        problems.append(f"it did not save: {said[-600:]}")
    if "Traceback" in said:
        problems.append(said[-1500:])
    state = json.loads((runs.path(name) / "run.json").read_text())["state"]
    if state != "interrupted":
        problems.append(f"run.json says {state}")
    hidden = [str(path) for path in runs.path(name).rglob(".*") if path.name != ".lock"]
    if hidden:
        problems.append(f"left behind: {hidden}")
    problems.append(runs.finish(name, kept_too=False))  # the stop's own checkpoint is one of the two newest
    found = [f"{where}: {problem}" for problem in problems if problem]
    if not found:
        shutil.rmtree(runs.path(name))
    return found

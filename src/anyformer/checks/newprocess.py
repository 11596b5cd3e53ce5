"""Tier 1: what was saved gives the same in another process, in which nothing of this one is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from anyformer.checks.results import CheckResult
from anyformer.checks.subject import Subject
from anyformer.core.errors import AnyformerError
from anyformer.models.calling import call_logits
from anyformer.models.calls.probing import difference, seeded, tolerance
from anyformer.models.plan import CallPlan
from anyformer.models.source import load_model

_SECONDS = 50
"""A new interpreter has torch loaded after two or three."""
# "" is the folder one is in, whose random.py or glob.py would be taken for Python's own
_HERE = (
    "import sys; sys.path[:] = filter(None, sys.path);"
    " from anyformer.checks.newprocess import answer; answer(sys.argv[1])"
)
_SEED = 20_011


def new_process(subject: Subject) -> CheckResult:
    """Save, build anew and load in a new process: the same logits."""
    name, expected = "new process", "built and loaded there, the saved weights give the same logits"
    loaded = subject.loaded
    if loaded is None or loaded.provenance.kind == "module":
        return CheckResult(name, 1, "n/a", "given as an object: how it is built is not known", expected)
    if why := subject.no_room(4):
        return CheckResult(name, 1, "n/a", why, expected)
    inputs = subject.batch(0)
    try:
        config = json.dumps(loaded.provenance.config)
    except TypeError:
        return CheckResult(name, 1, "n/a", "its configuration holds what no file does", expected)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        torch.save(subject.module.state_dict(), folder / "weights.pt")
        torch.save({"ids": inputs.input_ids.cpu(), "target": _on_cpu(inputs.target_ids)}, folder / "ids.pt")
        given = {"location": subject.place, "config": json.loads(config), "plan": subject.plan.to_dict()}
        (folder / "given.json").write_text(json.dumps({**given, "threads": torch.get_num_threads()}), encoding="utf-8")
        paths = os.pathsep.join(path for path in sys.path if path)
        try:
            done = subprocess.run(
                [sys.executable, "-c", _HERE, place],
                env={**os.environ, "PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return CheckResult(name, 1, "n/a", f"not ready after {_SECONDS} s", expected)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            cause = "what it needs to be built is in this process alone: a global, a file that is not there"
            return CheckResult(name, 1, "warn", f"there it ends with {said[:160]}", expected, cause)
        theirs = torch.load(folder / "logits.pt", weights_only=True)
    seeded()
    ours = call_logits(subject.module, subject.plan, inputs.input_ids, target_ids=inputs.target_ids).cpu()
    if ours.shape == theirs.shape and float(difference(ours, theirs).max()) <= tolerance(ours, subject.limits.share):
        return CheckResult(name, 1, "ok", "the same logits", expected)
    cause = (
        "something that counts is neither in the file nor in the weights: a global, the clock, a hash, the order of a"
        " set"
    )
    return CheckResult(name, 1, "fail", "other logits from the same weights", expected, cause)


def _on_cpu(ids: torch.Tensor | None) -> torch.Tensor | None:
    return None if ids is None else ids.cpu()


def answer(place: str) -> None:
    """In the new process: what the module built there gives, with the weights of the folder."""
    try:
        _answer(Path(place))
    except AnyformerError as error:
        sys.exit(" ".join((error.what, error.detail)).replace("\n", " "))


def _answer(folder: Path) -> None:
    given = json.loads((folder / "given.json").read_text(encoding="utf-8"))
    torch.set_num_threads(given["threads"])
    module = load_model(given["location"], config=given["config"], seed=_SEED).module
    module.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    module.eval()
    ids = torch.load(folder / "ids.pt", weights_only=True)
    seeded()
    with torch.no_grad():
        logits = call_logits(module, CallPlan.from_dict(given["plan"]), ids["ids"], target_ids=ids["target"])
    torch.save(logits, folder / "logits.pt")

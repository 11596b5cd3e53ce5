"""Whether two runs are the same: their tables of metrics row by row, their weights by hash.

The figures compared are those that training decides; seconds and tokens per second are the machine's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from anyformer.core.errors import CheckpointError
from anyformer.core.findings import Finding
from anyformer.runs.checkpoints import list_checkpoints, read_weights, step_of, verify_checkpoint
from anyformer.runs.table import COLUMNS, FILE, MEASURED, read_metrics

_Row = dict[str, float | None]
FIGURES = tuple(name for name in COLUMNS if name not in ("step", *MEASURED))
TOLERANCE = 0.02
"""Relative difference that two curves may have where versions, processors or devices differ. Rounding that differs in
the last digit grows with the steps: with two threads instead of one to 1.2 % in 200 (benchmarks/results/resume.md)."""


def compare_curves(first: Path, again: Path, steps: int, *, exact: bool) -> Finding:
    """Compare the rows of two runs' tables up to and with step ``steps``; what ``first`` has, ``again`` must have.

    exact: equal bit for bit, as the same code on the same machine gives on a CPU; else losses within TOLERANCE.
    """
    wanted = {int(row["step"] or 0): row for row in read_metrics(first / FILE) if (row["step"] or 0) <= steps}
    found = {int(row["step"] or 0): row for row in read_metrics(again / FILE)}
    if not wanted:
        return Finding("loss curve", "n/a", "no rows", reason=f"the run wrote no metrics before step {steps:,}")
    unequal = _differences(wanted, found)
    rows = f"{len(wanted):,} row{'' if len(wanted) == 1 else 's'}"
    if not unequal:
        return Finding("loss curve", "ok", f"{rows} equal bit for bit", "equal bit for bit" if exact else _within())
    first_one = unequal[0][1]
    if exact:
        return Finding("loss curve", "fail", first_one, "equal bit for bit", f"the first of {rows} that differs")
    apart, largest = max(unequal, key=lambda one: one[0])
    if apart <= TOLERANCE:
        return Finding(
            "loss curve", "ok", f"{rows}, losses at most {apart:.1e} apart", _within(), f"first: {first_one}"
        )
    return Finding("loss curve", "fail", largest, _within(), f"the largest difference in {rows}")


def _differences(wanted: dict[int, _Row], found: dict[int, _Row]) -> list[tuple[float, str]]:
    """(relative difference, words) of each figure that is not the same, in the order of the steps.

    The difference counts for losses alone, and is infinite where a figure is missing. An evaluation that only the
    second run has does not count; NaN is NaN.
    """
    unequal = []
    for step, row in wanted.items():
        for name in FIGURES:
            value, other = row[name], (found.get(step) or {}).get(name)
            both_nan = value is not None and other is not None and math.isnan(value) and math.isnan(other)
            if value is None or value == other or both_nan:
                continue
            far = _apart(value, other) if name.endswith("loss") or other is None else 0.0
            unequal.append((far, f"step {step:,}: {name} {_shown(other)} instead of {_shown(value)}"))
    return unequal


def compare_weights(first: Path, again: Path, steps: int, *, exact: bool) -> Finding:
    """Compare the weights of the newest step that both runs keep, up to and with ``steps``, by sha256."""
    here, there = ({step_of(folder): folder for folder in list_checkpoints(run)} for run in (first, again))
    both = [step for step in here if step in there and step <= steps]
    if not both:
        kept = ", ".join(f"{step:,}" for step in sorted(here)) or "none"
        return Finding("weights", "n/a", f"none of step {steps:,}", reason=f"checkpoints that the run keeps: {kept}")
    step = max(both)
    try:
        for folder in (here[step], there[step]):
            verify_checkpoint(folder)
        weights, others = read_weights(here[step]), read_weights(there[step])
    except CheckpointError as error:
        return Finding("weights", "warn", error.what, reason="a damaged checkpoint says nothing of the run")
    before, after = weights_sha256(weights), weights_sha256(others)
    if before == after:
        return Finding("weights", "ok", f"of step {step:,} equal, sha256 {before[:16]}…", "the same sha256")
    names = f"of step {step:,}: sha256 {after[:16]}… instead of {before[:16]}…"
    return Finding("weights", "fail" if exact else "note", names, "the same sha256", _weights_apart(weights, others))


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and values. That of the file is another each time: its header has no order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _weights_apart(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> str:
    """The tensor that differs most, in words."""
    if {name: tensor.shape for name, tensor in weights.items()} != {n: t.shape for n, t in others.items()}:
        return "not the same tensors"
    far = {name: float((tensor.double() - others[name].double()).abs().max()) for name, tensor in weights.items()
           if tensor.numel()}  # fmt: skip
    name = max(far, key=lambda one: far[one], default="")
    return f"largest difference: {far[name]:.1e} in {name}" if name else "no numbers in them"


def _within() -> str:
    return f"losses within {TOLERANCE:.0%}"


def _apart(value: float, other: float | None) -> float:
    """Relative difference; infinite where one is no number."""
    if other is None or not (math.isfinite(value) and math.isfinite(other)):
        return math.inf
    return abs(other - value) / max(abs(value), 1e-9)


def _shown(value: float | None) -> str:
    return "nothing" if value is None else repr(value)

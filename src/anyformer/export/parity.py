"""Whether an artefact computes what the model computes, at shapes it has not seen, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from anyformer.core.errors import AnyformerError, ExportError, ParityError
from anyformer.export.called import Called, Shapes, example_inputs, traceable
from anyformer.models.plan import CallPlan
from anyformer.models.probes import set_mode, untouched

MAX_ERROR = 1e-4
"""Relative to the largest |logit| where that exceeds 1: float32 sums in another order differ by some 1e-6."""
_RUNS = 15
Runner = Callable[[tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class Parity:
    """What was compared."""

    max_error: float
    """Largest difference of a logit, relative to the largest |logit| where that exceeds 1."""
    shapes: tuple[tuple[int, ...], ...]
    """(B, T) each, of an encoder-decoder (B, T, S)."""


@dataclass(frozen=True)
class Written:
    """An artefact that was proven equal to the model."""

    path: Path
    mode: str
    """How it was made: torch.export or trace, trace or script."""
    parity: Parity | None
    """None where nobody asked for the proof."""
    run: Runner
    opset: int | None = None


@dataclass(frozen=True)
class Speed:
    """Median seconds of a call, both sides with as many threads, in turn."""

    shape: tuple[int, ...]
    model: float
    artefact: float

    @property
    def speedup(self) -> float:
        """Times as fast as the model."""
        return self.model / self.artefact


def prove(module: nn.Module, plan: CallPlan, run: Runner, *, most: float = MAX_ERROR, free: bool = True) -> Parity:
    """Compare at all unseen shapes, or, where none is ``free`` to differ, at the one it was made from.

    Raises ParityError where a logit differs by more than ``most``, or a call fails.
    """
    called, known = Called(module, plan), Shapes.of(plan)
    shapes = known.unseen() if free else [known.example()]
    worst, seen = 0.0, []
    for seed, shape in enumerate(shapes):
        inputs = example_inputs(plan, shape, seed + 1)
        axes = shape if plan.family == "encoder_decoder" else shape[:2]
        at = " × ".join(map(str, axes))
        with traceable(module):
            wanted = called(*inputs).float()
        try:
            got = run(inputs).float()
        except Exception as error:
            words = str(error).strip().splitlines()
            raise ParityError(f"it does not run at {at}", words[0][:300] if words else type(error).__name__) from error
        if got.shape != wanted.shape:
            raise ParityError(f"at {at} it gives {tuple(got.shape)}, the model {tuple(wanted.shape)}")
        apart = _apart(got, wanted)
        if not apart <= most:
            raise ParityError(
                f"at {at} its logits are {apart:.2g} apart", f"at most {most:g} of the largest is allowed"
            )
        worst = max(worst, apart)
        seen.append(axes)
    return Parity(worst, tuple(seen))


def _apart(got: Tensor, wanted: Tensor) -> float:
    finite = wanted.isfinite()
    if not torch.equal(got.isfinite(), finite) or not torch.equal(
        got[~finite].nan_to_num(), wanted[~finite].nan_to_num()
    ):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    return float((got - wanted)[finite].abs().max() / wanted[finite].abs().max().clamp(min=1))


def race(module: nn.Module, plan: CallPlan, run: Runner) -> Speed:
    """Time model and artefact in turn on one text as long as the model takes, 128 tokens at most."""
    shapes, called = Shapes.of(plan), Called(module, plan)
    length = shapes.length or min(128, shapes.longest)
    shape = (shapes.rows or 1, length, length)
    inputs = example_inputs(plan, shape)
    times: tuple[list[float], list[float]] = ([], [])
    with untouched(module), torch.no_grad():  # as it runs elsewhere, fused layers and all
        set_mode(module, False)
        sides: tuple[Callable[[], Tensor], ...] = ((lambda: called(*inputs)), (lambda: run(inputs)))
        for turn in range(_RUNS + 2):
            for side, kept in zip(sides, times, strict=True):
                begin = time.perf_counter()
                side()
                if turn > 1:
                    kept.append(time.perf_counter() - begin)
    axes = shape if plan.family == "encoder_decoder" else shape[:2]
    return Speed(axes, *(statistics.median(kept) for kept in times))


def first_that_is_equal(
    module: nn.Module,
    plan: CallPlan,
    path: Path,
    ways: Mapping[str, Callable[[Path], tuple[Runner, int | None]]],
    kind: str,
    *,
    proof: bool = True,
    free: bool = True,
) -> Written:
    """Write ``path`` in one way after the other until what was written computes what the model computes.

    ways: each writes the file and gives what runs it, and its opset. Nothing is left where none leads there: raises
    ParityError where each wrote one that differs, ExportError otherwise, with the reason of each.
    """
    tried: list[tuple[str, AnyformerError]] = []
    for mode, way in ways.items():
        path.unlink(missing_ok=True)
        try:
            run, opset = way(path)
            return Written(path, mode, prove(module, plan, run, free=free) if proof else None, run, opset)
        except AnyformerError as error:
            tried.append((mode, error))
    path.unlink(missing_ok=True)
    raised = ParityError if all(isinstance(error, ParityError) for _, error in tried) else ExportError
    lines = [line for mode, error in tried for line in (f"by {mode}: {error.what}", *_deeper(error.detail))]
    fix = next((error.fix for _, error in tried if error.fix), "")
    raise raised(f"no {kind} that computes what the model computes", "\n".join(lines), fix)


def _deeper(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]

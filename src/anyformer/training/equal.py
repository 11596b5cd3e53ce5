"""Whether a faster or leaner way to a loss gives the same loss and the same gradients: what is measured and how near.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.models.calls.probing import seeded
from anyformer.models.plan import CallPlan
from anyformer.models.probes import untouched

PROOF_LOGITS = 1 << 22
"""Logits of a proof, but for two rows: of a large vocabulary they are most of the memory of a run."""
_EXACT = (1e-5, 1e-4)
_HALF = (5e-3, 5e-2)


def some_rows(batch: Mapping[str, Any], plan: CallPlan) -> dict[str, Any]:
    """The first rows of a batch, two at least: as many as a proof has memory for."""
    length = batch["labels"].shape[1] if batch["labels"].dim() > 1 else 1
    rows = max(2, PROOF_LOGITS // (length * plan.vocab_size))
    return {name: v[:rows] if isinstance(v, Tensor) and v.dim() else v for name, v in batch.items()}


def computed_in(tensor: Tensor) -> torch.dtype:
    """The type in which a linear map of it is computed here."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def limits(dtype: torch.dtype) -> tuple[float, float]:
    """Largest relative difference of the loss, and of a gradient relative to its norm, that rounding explains."""
    return _EXACT if dtype == torch.float32 else _HALF


def apart(first: Tensor | None, second: Tensor | None) -> float:
    """Norm of the difference, relative to the first; a gradient that is missing is zero."""
    if first is None or second is None:
        other = second if first is None else first
        return 0.0 if other is None or not bool(other.any()) else float("inf")
    size = float(first.norm())
    return float((first - second).norm()) / size if size else float(second.norm())


@dataclass(frozen=True)
class Passed:
    """What one pass forward and backward gave, and what it left behind."""

    loss: float
    gradients: list[Tensor | None]
    state: dict[str, Any]
    """Buffers and plain numbers of the submodules afterwards, by name."""


def passed(module: nn.Module, loss: Callable[[], Tensor | None], seed: int = 0) -> Passed | None:
    """One pass from a fixed random state, in the mode that the module is in; the module is left as it was.

    None where ``loss`` gives none.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    with untouched(module), torch.enable_grad():
        seeded(seed)
        value = loss()
        if value is None:
            return None
        found: list[Tensor | None] = list(torch.autograd.grad(value, parameters, allow_unused=True))
        state: dict[str, Any] = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        for name, part in module.named_modules():
            plain = {key: v for key, v in vars(part).items() if isinstance(v, int | float) and key != "training"}
            state.update({f"{name}.{key}".lstrip("."): number for key, number in plain.items()})
        return Passed(float(value.detach()), found, state)


def different(expected: Passed | None, found: Passed | None, dtype: torch.dtype) -> str:
    """In what a pass differs from the plain one, by more than rounding; empty where in nothing."""
    if expected is None or found is None:
        return "it gives no loss"
    loss_limit, limit = limits(dtype)
    loss = abs(found.loss - expected.loss) / max(abs(expected.loss), 1e-9)
    if not loss <= loss_limit:  # NaN is no proof either
        return f"its loss is another ({loss:.0e})"
    farthest = max((apart(a, b) for a, b in zip(expected.gradients, found.gradients, strict=True)), default=0.0)
    if not farthest <= limit:
        return f"its gradients are others ({farthest:.0e})"
    for name, value in expected.state.items():
        after = found.state.get(name)
        if isinstance(value, Tensor):
            same = isinstance(after, Tensor) and value.shape == after.shape and _close(value, after, limit)
        else:
            same = value == after
        if not same:
            return f"{name} is written to once more"
    return ""


def _close(first: Tensor, second: Tensor, limit: float) -> bool:
    return torch.allclose(first.double(), second.double(), rtol=limit, atol=0.0, equal_nan=True)

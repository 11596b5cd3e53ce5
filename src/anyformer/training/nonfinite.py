"""Which parameter went wrong first, when a loss or a gradient is no longer a finite number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.errors import TrainingError
from anyformer.models.objectives import batch_logits
from anyformer.models.plan import CallPlan

KEPT = "\nthe weights were not updated with it"


def first_nonfinite(module: nn.Module, *, gradients: bool) -> str | None:
    """Name of the first parameter, in the module's order, whose value (or gradient) is not finite."""
    for name, parameter in module.named_parameters():
        tensor = parameter.grad if gradients else parameter
        if tensor is not None and not torch.isfinite(tensor).all():
            return name
    return None


def first_nonfinite_output(module: nn.Module, plan: CallPlan, batch: Mapping[str, Any]) -> str | None:
    """Name of the first submodule whose output is not finite in a forward pass on a batch."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    handles = [sub.register_forward_hook(watch(name)) for name, sub in module.named_modules() if name]
    try:
        with torch.no_grad():
            batch_logits(module, plan, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def loss_error(
    module: nn.Module, plan: CallPlan, batch: Mapping[str, Any] | None, loss: float, step: int, *, kind: str = "loss"
) -> TrainingError:
    """The message for a loss that is not finite at optimizer step ``step`` (1-based).

    batch: to look at the module's outputs with, where one is at hand.
    """
    parameter = first_nonfinite(module, gradients=False)
    if parameter is not None:
        where = f"the first parameter that is not finite: {parameter}; an update before has overflowed"
    else:
        output = first_nonfinite_output(module, plan, batch) if batch is not None else None
        where = (
            f"all parameters are finite; the first output that is not: {output}"
            if output
            else "all parameters are finite, and with the same batch again all outputs too: it comes and goes"
            if batch is not None
            else "all parameters are finite"
        )
        where += KEPT
    return _error(f"the {kind} is {loss:g} at step {step:,}", where)


def gradient_error(module: nn.Module, step: int) -> TrainingError:
    """The message for a gradient that is not finite at optimizer step ``step`` (1-based)."""
    parameter = first_nonfinite(module, gradients=True)
    where = (
        f"the first parameter whose gradient is not finite: {parameter}"
        if parameter
        else "each parameter's gradient is finite, their norm is not"
    )
    return _error(f"the gradient is not finite at step {step:,}", where + KEPT)


def _error(what: str, where: str) -> TrainingError:
    return TrainingError(
        what,
        where,
        "try a lower --learning_rate or more --warmup_steps; if it stays, the named part of the model is at fault",
    )

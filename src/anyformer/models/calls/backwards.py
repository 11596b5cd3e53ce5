"""The backward pass of a training step: whether it runs, and which line of the model stops it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.blame import user_lines
from anyformer.models.calling import call_logits
from anyformer.models.calls.probing import Prober, seeded
from anyformer.models.plan import CallPlan
from anyformer.models.probes import set_mode, untouched

_LARGE = 4_000_000  # numbers of a parameter
_STEPS = 2  # a cache that keeps the graph of the first fails in the second


def backward_finding(prober: Prober, plan: CallPlan) -> list[Finding]:
    """Fail where the backward pass of one of two steps in training mode raises; nothing where they run."""
    inputs = prober.inputs(plan, *prober.sizes[0][:2], 37, prober.sizes[0][2])

    def forward() -> torch.Tensor:
        seeded()
        return call_logits(prober.module, plan, inputs.input_ids, target_ids=inputs.target_ids).float().sum()

    with untouched(prober.module, gradients=False), _gradients_dropped(prober.module), torch.enable_grad():
        set_mode(prober.module, True)
        for _ in range(_STEPS):
            try:
                total = forward()
            except Exception:  # noqa: BLE001  (a stranger's forward may raise anything in training mode: batchproof tells)
                return []
            if not total.requires_grad:
                return []
            try:
                total.backward()  # type: ignore[no-untyped-call]
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                told = not_differentiable(error, lambda: forward().backward())  # type: ignore[no-untyped-call]
                why = f"{told.detail}; {told.fix}" if told.fix else told.detail
                return [
                    Finding(
                        "backward pass",
                        "fail",
                        told.what.removeprefix("the backward pass "),
                        "it runs, step after step",
                        " ".join(why.split()),
                    )
                ]
    return []


@contextmanager
def _gradients_dropped(module: nn.Module) -> Iterator[None]:
    """Each gradient is freed as soon as it is there, and large tables get none: they would take the model's memory."""
    held = [(p, p.grad) for p in module.parameters()]

    def drop(parameter: torch.Tensor) -> None:
        parameter.grad = None

    for parameter, _ in held:
        parameter.grad = None
        if parameter.is_leaf and parameter.numel() > _LARGE:
            parameter.requires_grad_(False)  # ``untouched`` puts it back
    hooks = [p.register_post_accumulate_grad_hook(drop) for p, _ in held if p.requires_grad]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, grad in held:
            parameter.grad = grad


def not_differentiable(error: RuntimeError, again: Callable[[], None]) -> CallError:
    """What to raise for a backward pass that failed; again: the same step, run once more to learn its line."""
    inplace = "inplace" in str(error)
    twice = "second time" in str(error)
    what = "an in-place operation" if inplace else "an operation"
    fix = "write x = x + y for x += y and relu(x) for relu_(x)" if inplace else ""
    return CallError(
        "the backward pass fails: a state is kept between steps with its gradient"
        if twice
        else f"the backward pass fails: {what} of the model cannot be differentiated",
        f"{_line(again)}{str(error).splitlines()[0].partition(' Hint:')[0]}",
        "detach() what forward keeps for the next call" if twice else fix,
    )


def _line(again: Callable[[], None]) -> str:
    """The line whose result the backward pass cannot use, by autograd's own record of it; "" if unknown."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.enable_grad(), torch.autograd.set_detect_anomaly(True):
                again()
        except RuntimeError:
            pass  # it failed before; the record of the forward pass is in the warning
    frames = [line for w in caught for line in user_lines(str(w.message))]
    return f"{frames[-1]}\n" if frames else ""

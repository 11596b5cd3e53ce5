"""The backward pass of a training step: whether it runs, and which line of the model stops it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.blame import user_lines
from anyformer.models.calling import call_logits
from anyformer.models.calls.locating import Size
from anyformer.models.calls.probing import Prober, seeded
from anyformer.models.inputs import Inputs
from anyformer.models.plan import CallPlan
from anyformer.models.probes import set_mode, untouched

_LARGE = 4_000_000  # numbers of a parameter
_LONG = 64
_STEPS = 2  # a cache that keeps the graph of the first fails in the second


def backward_finding(module: nn.Module, plan: CallPlan, sizes: tuple[Size, ...]) -> list[Finding]:
    """Fail where the backward pass of one of two steps in training mode raises, or only there logits are NaN.

    Nothing where they run.

    sizes: (B, T, S) at which the call was found. Gradients are computed without being kept: no ``.grad`` is set and no
    hook that waits for one runs.
    """
    prober = Prober(module)
    prober.sizes = sizes
    inputs = prober.inputs(plan, *sizes[0][:2], 37, sizes[0][2])
    weights = _one_of_each(module)

    def logits(inputs: Inputs = inputs) -> Tensor:
        seeded()
        return call_logits(module, plan, inputs.input_ids, target_ids=inputs.target_ids)

    def forward() -> Tensor:
        return some_loss(logits())

    def backward(loss: Tensor) -> None:
        torch.autograd.grad(loss, weights, allow_unused=True)

    with untouched(module, gradients=False), torch.enable_grad():
        set_mode(module, True)
        for _ in range(_STEPS if weights else 0):
            try:
                loss = forward()
            except Exception:  # noqa: BLE001  (a stranger's forward may raise anything in training mode: batchproof tells)
                return []
            if bool(loss.isnan()) and _nan_in_training_alone(module, logits, _longer(prober, plan)):
                why = "in eval mode they are finite: dropout may empty a row that is then divided by its sum, say;"
                why += " dropout = 0 in config.json tells whether it does"
                return [Finding("training mode", "fail", "the logits are NaN", "finite, as in eval mode", why)]
            if not loss.requires_grad:
                return []
            try:
                backward(loss)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # noqa: BLE001  (a stranger's Function may raise anything; it is reported)
                if "heckpoint" in str(error):
                    return []  # torch.utils.checkpoint in its old form wants backward() itself: batchproof runs it
                told = not_differentiable(error, lambda: backward(forward()))
                why = f"{told.detail}; {told.fix}" if told.fix else told.detail
                measured = told.what.removeprefix("the backward pass ")
                return [Finding("backward pass", "fail", measured, "it runs, step after step", " ".join(why.split()))]
            for weight in weights:
                increment_version(weight)  # as an optimizer's step does: what was made of the weights is out of date
    return []


def _longer(prober: Prober, plan: CallPlan) -> Inputs:
    """As long as the model takes, up to 64 tokens: a share of few tokens may be none."""
    T = plan.only_length or min(plan.max_positions or _LONG, _LONG)
    return prober.inputs(plan, 2, T, 39, T)


def _nan_in_training_alone(module: nn.Module, logits: Callable[..., Tensor], inputs: Inputs) -> bool:
    """Whether longer texts give NaN in training mode, too, and finite logits in eval mode; it ends in training mode."""
    with torch.no_grad():
        try:
            trained = logits(inputs)
            set_mode(module, False)
            return bool(trained.isnan().any()) and bool(logits(inputs).isfinite().all())
        except Exception:  # noqa: BLE001  (a stranger's forward may raise anything at this length: nothing is said then)
            return False
        finally:
            set_mode(module, True)


def _one_of_each(module: nn.Module) -> list[nn.Parameter]:
    """The first parameter of each kind: a gradient that reaches the first block has passed all others."""
    kinds: dict[str, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.is_leaf and not is_lazy(parameter) and parameter.numel() <= _LARGE:
            kinds.setdefault(re.sub(r"\d+", "#", name), parameter)
    return list(kinds.values())


def some_loss(logits: Tensor) -> Tensor:
    """Cross-entropy with arbitrary classes: its gradient reaches what any objective's reaches."""
    rows = logits.reshape(-1, logits.shape[-1]).float()
    return F.cross_entropy(rows, torch.arange(len(rows), device=rows.device) % rows.shape[1])


def not_differentiable(error: Exception, again: Callable[[], None]) -> CallError:
    """What to raise for a backward pass that failed; again: the same step, run once more to learn its line."""
    said = str(error).strip() or type(error).__name__  # an assert may say nothing
    inplace = "inplace" in str(error)
    twice = "second time" in str(error)
    what = "an in-place operation" if inplace else "an operation"
    fix = "write x = x + y for x += y and relu(x) for relu_(x)" if inplace else ""
    return CallError(
        "the backward pass fails: a state is kept between steps with its gradient"
        if twice
        else f"the backward pass fails: {what} of the model cannot be differentiated",
        f"{_line(again)}{said.splitlines()[0].partition(' Hint:')[0]}",
        "detach() what forward keeps for the next call" if twice else fix,
    )


def _line(again: Callable[[], None]) -> str:
    """The line whose result the backward pass cannot use, by autograd's own record of it; "" if unknown."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with torch.enable_grad(), torch.autograd.set_detect_anomaly(True):
                again()
        except Exception:  # noqa: BLE001  (a stranger's Function may raise anything)
            pass  # it failed before; the record of the forward pass is in the warning
    frames = [line for w in caught for line in user_lines(str(w.message))]
    return f"{frames[-1]}\n" if frames else ""

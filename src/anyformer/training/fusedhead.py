"""Head and cross-entropy in one: the (N, V) logits and their gradient never exist at once.

Where the logits are just a linear map of hidden states, the module is called with that map left out, and loss and
gradients are computed for some rows at a time. Proven on the module itself before it is used.

Legend: B batch, T time, N = B·T rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anyformer.core.findings import Finding
from anyformer.models.blame import blame
from anyformer.models.objectives import (
    IGNORE_INDEX,
    batch_logits,
    objective_loss,
    objective_targets,
    objective_total,
)
from anyformer.models.plan import CallPlan, Objective
from anyformer.models.probes import set_mode, untouched
from anyformer.training.equal import apart, computed_in, limits, passed, some_rows
from anyformer.training.headloss import HeadLoss, rows_at_once
from anyformer.training.microbatch import lacks_memory

FUSE_FROM = 1 << 21
"""Logits of a batch from which on it pays (benchmarks/results/fused_head.md); below, the plain path is as fast."""
_GIVE_VALUES = frozenset(
    {"item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__complex__", "__index__"}
    | {"equal", "allclose", "is_nonzero", "__contains__"}
)
"""Functions that give no tensor and yet something of its values."""
_MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)


def choose_head(
    module: nn.Module, plan: CallPlan, objective: Objective, batch: Mapping[str, Any], label_smoothing: float = 0.0
) -> tuple[str | None, Finding]:
    """Name of the head's weight, to be fused for batches like this one, or None; and why. In the precision of here.

    Proven on some rows of the batch: equal loss, and equal gradients of every parameter. The module is left as it was.
    """
    size = batch["labels"].numel() * plan.vocab_size
    if objective == "classification" or size < FUSE_FROM:
        return None, _off(f"{size:,} logits a batch are few: in one piece they are as fast")
    if _is_fp16(next(module.parameters())):
        return None, _off("in float16 its gradients are too small before the loss is scaled")
    part = some_rows(batch, plan)
    try:
        head, reason = _find(module, plan, part)
        if head is None:
            return None, _off(reason)
        return _proven(module, plan, objective, part, label_smoothing, head)
    except Exception as error:
        if lacks_memory(error):
            raise
        return None, _off("the model does not run with its head left out: " + blame(error).replace("\n", ": "))


def _off(reason: str) -> Finding:
    return Finding("fused head", "note", "off", reason=reason)


def fused_loss(
    module: nn.Module,
    plan: CallPlan,
    objective: Objective,
    batch: Mapping[str, Any],
    head: str,
    label_smoothing: float = 0.0,
) -> Tensor | None:
    """The loss of ``objective_loss`` with gradients, in nats per target; None where the module went another way."""
    hidden, bias = _hidden(module, plan, batch, head)
    if hidden is None:
        return None
    targets = objective_targets(objective, batch["labels"], batch.get("next_ids")).flatten()
    loss: Tensor = HeadLoss.apply(hidden, module.get_parameter(head), bias, targets, label_smoothing)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def fused_total(
    module: nn.Module, plan: CallPlan, objective: Objective, batch: Mapping[str, Any], head: str
) -> tuple[Tensor, Tensor] | None:
    """``objective_total`` of a batch: summed nats (float64) and targets (int64); None as ``fused_loss``."""
    hidden, bias = _hidden(module, plan, batch, head)
    if hidden is None:
        return None
    targets = objective_targets(objective, batch["labels"], batch.get("next_ids")).flatten()
    total = torch.zeros((), dtype=torch.float32 if hidden.device.type == "mps" else torch.float64, device=hidden.device)
    weight, kind = module.get_parameter(head), hidden.dtype
    step = rows_at_once(hidden, weight)
    for start in range(0, len(hidden), step):
        logits = F.linear(hidden[start : start + step], weight.to(kind), None if bias is None else bias.to(kind))
        nats = F.cross_entropy(
            logits.float(), targets[start : start + step], ignore_index=IGNORE_INDEX, reduction="none"
        )
        total += nats.sum(dtype=total.dtype)
    return total, (targets != IGNORE_INDEX).sum()


def _hidden(
    module: nn.Module, plan: CallPlan, batch: Mapping[str, Any], head: str
) -> tuple[Tensor | None, Tensor | None]:
    """What the head would read, (N, D), and its bias."""
    try:
        with _LeftOut(module.get_parameter(head)) as left_out:
            logits = batch_logits(module, plan, batch)
    except _LogitsRead:
        return None, None
    if left_out.calls != 1 or not _same_memory(logits, left_out.stand_in):
        return None, None
    if left_out.stand_in is None or left_out.stand_in._version or _is_fp16(left_out.read):
        return None, None
    hidden = left_out.read.flatten(0, -2)
    return (hidden, left_out.bias) if len(hidden) == logits.shape[:-1].numel() else (None, None)


def _same_memory(first: Tensor, second: Tensor | None) -> bool:
    return second is not None and first.data_ptr() == second.data_ptr() and first.dtype == second.dtype


def _linear(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any] | None:
    """(input, weight (V, D), bias) of a call that is a linear map: F.linear, or a product with a transposed weight."""
    if function is F.linear:
        given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
        return given["input"], given["weight"], given.get("bias")
    if function in _MATMULS and len(args) == 2 and isinstance(args[1], Tensor):
        weight = args[1]._base
        if isinstance(weight, nn.Parameter) and weight.dim() == 2 and args[1].shape == weight.shape[::-1]:
            turned = args[1].stride() == weight.stride()[::-1] and args[1].data_ptr() == weight.data_ptr()
            return (args[0], weight, None) if turned else None
    return None


class _LogitsRead(BaseException):
    """The module reads logits that are not there; no Exception, which its own ``except`` might hold."""


class _LeftOut(TorchFunctionMode):
    """Calls of one linear map return a stand-in without memory; what it would have read is kept.

    Raises _LogitsRead before the module gets a value that is made of the stand-in's zeros: that it does so only in some
    batches is not seen when it is proven.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._weight = weight
        self.calls = 0
        self.read: Any = None
        self.bias: Tensor | None = None
        self.stand_in: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.cross_entropy and any(_same_memory(given, self.stand_in) for given in _tensors(args, kwargs)):
            return self._no_loss(args, kwargs)
        found = _linear(func, args, kwargs)
        if found is None or found[1] is not self._weight:
            result = func(*args, **kwargs)
            if self.stand_in is not None and self._reads(func, result, args, kwargs):
                raise _LogitsRead
            return result
        self.read, _, self.bias = found
        self.calls += 1
        zero = self.read.detach().new_zeros((), dtype=computed_in(self.read))
        self.stand_in = zero.expand(*self.read.shape[:-1], len(self._weight))
        return self.stand_in

    def _reads(self, func: Any, result: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a function gave values of the stand-in: not a view of it, nor its shape, type or place."""
        if not any(_same_memory(given, self.stand_in) for given in _tensors(args, kwargs)):
            return False
        if isinstance(result, Tensor):
            return not _same_memory(result, self.stand_in)
        if isinstance(result, tuple | list) and any(isinstance(part, Tensor) for part in result):
            return not all(_same_memory(part, self.stand_in) for part in result if isinstance(part, Tensor))
        return getattr(func, "__name__", "") in _GIVE_VALUES

    def _no_loss(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """In place of the loss that the module computes itself: ours is used, of what the stand-in stands for."""
        target = _tensors(args, kwargs)[1]
        each = kwargs.get("reduction") == "none"
        return torch.zeros(target.shape if each else (), device=target.device)


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among the arguments, those in lists and tuples, too."""
    flat = [
        part for given in (*args, *kwargs.values()) for part in (given if isinstance(given, list | tuple) else [given])
    ]
    return [given for given in flat if isinstance(given, Tensor)]


def _is_fp16(tensor: Tensor) -> bool:
    """Gradients are made before a scaler multiplies the loss: in float16 most of a large vocabulary's would be zero."""
    return computed_in(tensor) == torch.float16


class _Seen(TorchFunctionMode):
    """Every linear map to V logits, and what else is done with one's result."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self._vocab_size = vocab_size
        self.maps: list[tuple[Tensor, Tensor]] = []
        """Weight and result."""
        self.versions: list[int] = []
        """Of the results as they were made: writing into one raises its own."""
        self.used: dict[int, str] = {}
        """Address of a result: the first function that made something of it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        found = _linear(func, args, kwargs)
        if found is not None and len(found[1]) == self._vocab_size:
            self.maps.append((found[1], result))
            self.versions.append(result._version)
        elif func is not F.cross_entropy and (isinstance(result, Tensor) or _holds_tensors(result)):
            read = {given.data_ptr() for given in _tensors(args, kwargs)}
            for _, made in self.maps:
                if made.data_ptr() in read and not (isinstance(result, Tensor) and _same_memory(result, made)):
                    self.used.setdefault(made.data_ptr(), getattr(func, "__name__", str(func)))
        return result


def _holds_tensors(result: Any) -> bool:
    return isinstance(result, tuple | list) and any(isinstance(part, Tensor) for part in result)


def _find(module: nn.Module, plan: CallPlan, batch: Mapping[str, Any]) -> tuple[str | None, str]:
    """The head whose result the logits are, with nothing done to them on the way; or why there is none."""
    with untouched(module), torch.no_grad():
        with _Seen(plan.vocab_size) as seen:
            logits = batch_logits(module, plan, batch)
        made = [(weight, out) for weight, out in seen.maps if _same_memory(logits, out)]
    if not made:
        last = next((name for name in seen.used.values()), None)
        return None, f"the logits are not those of a linear map: {last} follows" if last else "no linear map to logits"
    weight, out = made[-1]
    if sum(w is weight for w, _ in seen.maps) > 1:
        return None, "the head is called more than once"
    if any(o._version != before for (_, o), before in zip(seen.maps, seen.versions, strict=True)):
        return None, "the model writes into its logits"
    if not (out.is_contiguous() and logits.is_contiguous()):
        return None, "the logits are turned"
    if out.data_ptr() in seen.used:
        return None, f"the model itself reads its logits ({seen.used[out.data_ptr()]})"
    name = next((name for name, parameter in module.named_parameters() if parameter is weight), None)
    if name is None:
        return None, "the head's weight is computed, no parameter"
    return name, ""


def _proven(
    module: nn.Module,
    plan: CallPlan,
    objective: Objective,
    batch: Mapping[str, Any],
    label_smoothing: float,
    head: str,
) -> tuple[str | None, Finding]:
    """Equal loss and equal gradients, with the same dropout."""

    def plain() -> Tensor:
        logits = batch_logits(module, plan, batch)
        return objective_loss(
            objective, logits, batch["labels"], batch.get("next_ids"), label_smoothing=label_smoothing
        )

    def fused() -> Tensor | None:
        return fused_loss(module, plan, objective, batch, head, label_smoothing)

    expected, found = passed(module, plain), passed(module, fused)
    if expected is None or found is None:
        return None, _off(f"with {head} left out the logits are not what was left out")
    loss_limit, limit = limits(computed_in(module.get_parameter(head)))
    loss = abs(found.loss - expected.loss) / max(abs(expected.loss), 1e-9)
    farthest = max((apart(a, b) for a, b in zip(expected.gradients, found.gradients, strict=True)), default=0.0)
    if not (loss <= loss_limit and farthest <= limit):  # NaN is no proof either
        return None, _off(f"left out, {head} gives another loss ({loss:.0e}) or gradient ({farthest:.0e})")
    with untouched(module):
        set_mode(module, False)
        total = fused_total(module, plan, objective, batch, head)
        with torch.no_grad():
            logits = batch_logits(module, plan, batch)
            right, _ = objective_total(objective, logits, batch["labels"], batch.get("next_ids"))
    if total is None or not float((total[0] - right).abs()) <= loss_limit * float(right.abs()):
        return None, _off(f"in eval mode the logits are not what {head} makes")
    why = (
        f"loss equal to {max(loss, 1e-8):.0e}, gradients to {max(farthest, 1e-8):.0e}; the logits are never there whole"
    )
    return head, Finding("fused head", "ok", f"{head} and the loss in one", "equal loss and gradients", why)

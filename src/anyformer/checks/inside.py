"""Tier 2: what goes on between layers: residual paths, layers in a row. What cannot be seen says so.

B batch, T time, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anyformer.checks.attended import attended
from anyformer.checks.attention import watched_inputs, worst
from anyformer.checks.results import CheckResult, Series
from anyformer.checks.stream import lost, norms_of
from anyformer.checks.subject import Subject


@dataclass
class _Call:
    block: nn.Module
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor
    attends: bool


def residual(subject: Subject) -> CheckResult:
    """A block adds to what comes in: scaled up, its input comes out again, once."""
    return worst(subject, _residual)


def _residual(subject: Subject, seed: int) -> CheckResult:
    name, expected = "residual", "a block gives its input, and what it adds"
    calls = _block_calls(subject, seed)
    judged = [call for call in calls if call.attends]
    if not judged:
        return _between_norms(subject, seed)
    told = 0
    for call in judged:
        likeness, slope, normed = _passed_on(call)
        if likeness is None:
            continue
        told += 1
        if likeness < subject.limits.likeness:
            cause = "x = x + layer(norm(x)): the input is dropped, or replaced by what a layer makes of it"
            measured = f"what comes out has a correlation of {likeness:.2f} with what goes in"
            return CheckResult(name, 2, "warn", measured, expected, cause, call.name)
        if slope < _HARDLY and not subject.trained and not normed:
            cause = (
                "x + layer(norm(x)) in place of h + layer(h) with h = norm(x): the text's own vectors are lost at each"
                " block (meant so, it is Megatron's apply_residual_connection_post_layernorm)"
            )
            measured = "scaled up, its input comes out as before: it goes through the norm itself"
            return CheckResult(name, 2, "warn", measured, expected, cause, call.name)
        if slope > 1.5:
            measured = (
                f"it gives its input {slope:.2g} times: {slope ** len(judged):.3g} times after {len(judged)} blocks"
            )
            return CheckResult(name, 2, "warn", measured, expected, "the input is added twice", call.name)
    if not told:
        return CheckResult(name, 2, "n/a", "no block runs with its input scaled", expected)
    growth = _rms(judged[-1].out) / max(_rms(_hidden(judged[0].args, judged[0].kwargs)), 1e-30)
    measured = f"{len(judged)} blocks pass their input on; {growth:.2g} times as large after them"
    sizes = tuple(_rms(call.out) for call in judged)
    bars = Series("bars", {"": sizes}, tuple(c.name for c in judged), "size after each block", y_label="RMS")
    return CheckResult(name, 2, "ok", measured, expected, series=(bars,))


def _between_norms(subject: Subject, seed: int) -> CheckResult:
    """The same where blocks are lists of parts: by what each norm reads."""
    name, expected = "residual", "a norm reads what the one before it read, and what was added"
    inputs = watched_inputs(subject, seed)
    with attended(subject.read(inputs).shape[1], inputs.input_ids.shape[1]) as watch, norms_of(subject.awake) as norms:
        subject.logits(inputs)
    missing, told = lost(norms)
    if not watch.found or not told:
        return CheckResult(name, 2, "n/a", "no block with attention in it was seen", expected)
    if missing is None:
        return CheckResult(
            name, 2, "ok", f"{told} times what one norm reads is what the one before it read, and more", expected
        )
    if missing.times < 0.5:
        cause = "x = x + layer(norm(x)): the input is dropped, or replaced by what a layer makes of it"
        return CheckResult(
            name, 2, "warn", f"{missing.name} reads what a layer gave, alone", expected, cause, missing.name
        )
    measured = f"{missing.name} reads {missing.times:.2g} times what was read before"
    return CheckResult(name, 2, "warn", measured, expected, "the input is added twice", missing.name)


_HARDLY = 0.01
"""Of a block's input, scaled up: less comes out where it is the norm of it that goes on."""


def _of_one_size(out: Tensor) -> bool:
    """Whether all rows are as large: a norm comes last, as in Vaswani et al. 2017."""
    sizes = out.double().square().mean(-1)
    return float(sizes.std()) < 1e-3 * float(sizes.mean())


def _rms(x: Tensor | None) -> float:
    return 0.0 if x is None else float(x.double().square().mean().sqrt())


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The hidden states that a block is given first."""
    given = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
    return given if given is not None and given.is_floating_point() and given.dim() == 3 else None


def _first_tensor(out: Any) -> Any:
    return next((t for t in out if isinstance(t, Tensor)), None) if isinstance(out, tuple | list) else out


def _blocks(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Submodules that stand in a row, and hold others; the outermost."""
    found: list[tuple[str, nn.Module]] = []
    lists = {name for name, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    nested = {name for name in lists if name.rpartition(".")[0] in lists}  # of the parts of one block
    for name, holder in module.named_modules():
        if not isinstance(holder, nn.ModuleList | nn.Sequential) or name in nested:
            continue
        for key, child in holder.named_children():
            if len(list(child.modules())) > 2 and not isinstance(child, nn.ModuleList | nn.ModuleDict):
                place = f"{name}.{key}" if name else key
                if not any(place.startswith(f"{outer}.") for outer, _ in found):
                    found.append((place, child))
    return found


@contextmanager
def _recorded(subject: Subject, watch: Any, calls: list[_Call]) -> Iterator[None]:
    begun: dict[int, int] = {}
    handles = []
    for name, block in _blocks(subject.awake):

        def enter(m: nn.Module, args: Any, kwargs: Any) -> None:
            begun[id(m)] = len(watch.found)

        def leave(m: nn.Module, args: Any, kwargs: Any, out: Any, name: str = name) -> None:
            hidden, made = _hidden(args, kwargs), _first_tensor(out)
            if hidden is not None and isinstance(made, Tensor) and made.shape == hidden.shape:
                attends = len(watch.found) > begun.get(id(m), 0)
                calls.append(_Call(m, name, args, kwargs, made.detach(), attends))

        handles += [
            block.register_forward_pre_hook(enter, with_kwargs=True),
            block.register_forward_hook(leave, with_kwargs=True),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _block_calls(subject: Subject, seed: int) -> list[_Call]:
    inputs = watched_inputs(subject, seed)
    calls: list[_Call] = []
    with attended(subject.read(inputs).shape[1], inputs.input_ids.shape[1]) as watch, _recorded(subject, watch, calls):
        subject.logits(inputs)
    return calls


_LOUD = 1e4
"""Times the input of a block: what it adds behind a norm is then small beside it."""


def _passed_on(call: _Call) -> tuple[float | None, float, bool]:
    """Correlation of a block's output with its input, small or large; then slope, and one size of all rows."""
    hidden = _hidden(call.args, call.kwargs)
    assert hidden is not None
    loud = hidden.detach() * (_LOUD / max(_rms(hidden), 1e-30))

    def swapped(value: Any) -> Any:
        return loud if value is hidden else value

    try:
        with torch.no_grad():
            out = call.block(*map(swapped, call.args), **{k: swapped(v) for k, v in call.kwargs.items()})
    except Exception:  # noqa: BLE001  (a stranger's block may refuse other numbers: then nothing is told)
        return None, 0.0, False
    made = _first_tensor(out)
    if not bool(made.isfinite().all()):
        return None, 0.0, False
    likeness = max(_likeness(hidden, call.out), _likeness(loud, made))
    x, y = loud.double().flatten(), made.double().flatten()
    return likeness, float((x * y).sum() / (x * x).sum()), _of_one_size(made)


def _likeness(x: Tensor, y: Tensor) -> float:
    x, y = x.double().flatten(), y.double().flatten()
    x, y = x - x.mean(), y - y.mean()
    both = float(x.norm() * y.norm())
    return float((x * y).sum()) / both if both else 0.0


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Addresses of tensors that something else than a linear layer reads."""

    _LINEAR = ("addmm", "mm", "linear", "t", "transpose", "view", "_unsafe_view", "expand", "detach", "alias")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elsewhere: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).removeprefix("aten.").partition(".")[0] not in self._LINEAR:
            self.elsewhere |= {t.data_ptr() for t in args if isinstance(t, Tensor)}
        return func(*args, **(kwargs or {}))


def linear_layers(subject: Subject) -> CheckResult:
    """Between two linear layers stands something that is not linear."""
    name, expected = "linear layers", "an activation between two of them"
    made: dict[int, tuple[str, nn.Linear, Tensor]] = {}
    pairs: list[tuple[str, int]] = []

    def enter(m: nn.Linear, args: tuple[Any, ...], place: str) -> None:
        before = made.get(args[0].data_ptr()) if args and isinstance(args[0], Tensor) else None
        if before is None or before[2].shape != args[0].shape or before[2]._version != args[0]._version:
            return
        inner = before[1].out_features
        if inner >= min(before[1].in_features, m.out_features):  # else it is one matrix of low rank, as may be meant
            pairs.append((f"{before[0]} → {place}", args[0].data_ptr()))

    def leave(m: nn.Linear, args: tuple[Any, ...], out: Tensor, place: str) -> None:
        made[out.data_ptr()] = (place, m, out)

    handles = []
    given = [n for n, m in subject.awake.named_modules() if isinstance(m, nn.AdaptiveLogSoftmaxWithLoss)]  # torch's own
    for place, layer in subject.awake.named_modules():
        if isinstance(layer, nn.Linear) and not any(place.startswith(f"{n}.") for n in given):
            handles.append(layer.register_forward_pre_hook(partial(enter, place=place)))
            handles.append(layer.register_forward_hook(partial(leave, place=place)))
    uses = _Uses()
    try:
        with uses:
            subject.logits(watched_inputs(subject))
    finally:
        for handle in handles:
            handle.remove()
    found = [pair for pair, address in pairs if address not in uses.elsewhere]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        cause = "two matrices in a row are one matrix: an activation is missing between them, or a layer is too many"
        return CheckResult(name, 2, "warn", f"nothing stands between {found[0]}{more}", expected, cause, found[0])
    return CheckResult(name, 2, "ok", "none follows another one at once", expected)

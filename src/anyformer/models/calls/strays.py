"""Weights that training cannot reach, and ids that a model overwrites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.blame import here
from anyformer.models.calls.probing import Prober
from anyformer.models.inputs import Inputs
from anyformer.models.plan import CallPlan

_DEPTH = 3  # of lists in dicts in lists


def stray_weights(module: nn.Module) -> list[tuple[str, str, Any]]:
    """(attribute, kind of its container, layer or tensor) of weights in plain containers, which nn.Module overlooks."""
    known = {id(p) for p in module.parameters()}
    found = []
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if key.startswith("_") or isinstance(value, nn.Module | Tensor):
                continue
            at = f"self.{name}.{key}" if name else f"self.{key}"
            found += [(at, type(value).__name__, v) for v in _held(value) if _has_unknown(v, known)]
    return found


def _held(value: Any, depth: int = 0) -> Iterator[Any]:
    if isinstance(value, nn.Module | Tensor):
        yield value
    elif isinstance(value, list | tuple | set) and depth < _DEPTH:
        for item in value:
            yield from _held(item, depth + 1)
    elif isinstance(value, dict) and depth < _DEPTH:
        for item in value.values():
            yield from _held(item, depth + 1)


def _has_unknown(value: Any, known: set[int]) -> bool:
    weights = value.parameters() if isinstance(value, nn.Module) else [value] if value.is_leaf else []
    return any(w.requires_grad and id(w) not in known for w in weights)


def stray_text(module: nn.Module, only: set[int] | None = None) -> str:
    """What to say of stray weights; only: ids of tensors, of which one at least must be among an attribute's."""
    for at, kind, value in stray_weights(module):
        weights = list(value.parameters()) if isinstance(value, nn.Module) else [value]
        if only is not None and not any(id(w) in only for w in weights):
            continue
        keep = {"dict": "nn.ModuleDict"}.get(kind, "nn.ModuleList")
        keep = keep if isinstance(value, nn.Module) else "nn.ParameterDict" if kind == "dict" else "nn.ParameterList"
        return f"{at} is a Python {kind}, which hides its weights from the optimizer and from the file: use {keep}"
    return ""


def stray_finding(prober: Prober, plan: CallPlan, inputs: Inputs) -> list[Finding]:
    """Fail where a layer in a plain list or dict takes part in the forward pass; warn of a buffer that is a weight."""
    ran: list[str] = []
    handles = []
    for at, _, value in stray_weights(prober.module):
        if isinstance(value, nn.Module):
            handles.append(value.register_forward_hook(lambda *_, at=at: ran.append(at)))
    held = [name for name, buffer in prober.module.named_buffers() if buffer.requires_grad]
    why = "it is saved; register_buffer keeps it from the optimizer: self.NAME = nn.Parameter(…) would train it"
    buffers = [Finding("weights", "warn", f"{held[0]} is not trained", "a parameter", why)] if held else []
    if not handles:
        return buffers
    try:
        prober.run(plan, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        return buffers
    return [Finding("weights", "fail", f"{ran[0]} would not be trained", "parameters", stray_text(prober.module))]


def leaves(logits: Tensor) -> list[Tensor]:
    """The tensors that a backward pass from the logits ends in."""
    found: dict[int, Tensor] = {}
    seen, todo = set(), [logits.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            found[id(variable)] = variable
        todo += [following for following, _ in node.next_functions]
    return list(found.values())


def unknown_leaves(module: nn.Module, logits: Tensor) -> list[Tensor]:
    """Weights that the logits depend on and that the module holds neither as parameters nor as buffers."""
    known = {id(t) for t in (*module.parameters(), *module.buffers())}
    return [t for t in leaves(logits) if id(t) not in known]


def made_anew(module: nn.Module, unknown: list[Tensor], again: Callable[[], Tensor]) -> bool:
    """Whether they are the ones and zeros of normalisation layers that each call makes anew: nothing of them is lost.

    again: gives the logits of another call.
    """
    plain = [t.numel() > 1 and float(t.flatten()[0]) in (0, 1) and bool((t == t.flatten()[0]).all()) for t in unknown]
    if not all(plain):
        return False
    held = {id(t) for t in unknown}  # the list keeps them alive: no other tensor gets their id
    others = unknown_leaves(module, again())
    return len(others) == len(unknown) and not any(id(t) in held for t in others)


def require_known_leaves(module: nn.Module, logits: Tensor, again: Callable[[], Tensor]) -> None:
    """CallError where the logits depend on weights that are no parameters of the module and that would be lost.

    again: gives the logits of another call.
    """
    unknown = unknown_leaves(module, logits)
    if not unknown or made_anew(module, unknown, again):
        return
    shapes = ", ".join(str(tuple(t.shape)) for t in unknown[:4]) + (" …" if len(unknown) > 4 else "")
    where = stray_text(module, {id(t) for t in unknown})
    raise CallError(
        f"{len(unknown)} weights of {type(module).__name__} would neither be trained nor saved",
        where or f"tensors {shapes} that forward uses are none of its parameters: made in forward, or held outside",
        "" if where else "make them in __init__, as layers or nn.Parameter",
    )


def require_no_new_parameters(module: nn.Module, known: set[str]) -> None:
    """CallError where a call added parameters to those of these names: the optimizer was made without them."""
    new = [name for name, _ in module.named_parameters() if name not in known]
    if not new:
        return
    shown = ", ".join(new[:4]) + (" …" if len(new) > 4 else "")
    raise CallError(
        f"{len(new)} weights of {type(module).__name__} would neither be trained nor loaded: forward makes them",
        f"new after a call: {shown}",
        "make them in __init__",
    )


class _Watch(TorchFunctionMode):
    """Notes the line after which a tensor is another one."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.tensors = [(t, t._version) for t in tensors]
        self.line = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.line and any(t._version != version for t, version in self.tensors):
            self.line = here()
        return result


def require_ids_kept(prober: Prober, plan: CallPlan, inputs: Inputs) -> None:
    """CallError where forward overwrites the ids that it is given: the labels are the same tensor."""
    given = [t for t in (inputs.input_ids, inputs.target_ids) if t is not None]
    before = [t.clone() for t in given]
    with _Watch(given) as watch:
        prober.run(plan, inputs)
    if all(torch.equal(a, b) for a, b in zip(before, given, strict=True)):
        return
    raise CallError(
        f"{type(prober.module).__name__} changes its input ids in place",
        watch.line or "the ids are others after the call",
        f"work on a copy: {plan.token_arg.lstrip('*')} = {plan.token_arg.lstrip('*')}.clone()",
    )

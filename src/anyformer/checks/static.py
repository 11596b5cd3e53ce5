"""Tier 0: what a module holds, without judging what it computes.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.checks.results import CheckResult
from anyformer.checks.subject import Subject
from anyformer.models.blame import blame
from anyformer.models.calling import call_logits

_DEEP = 4  # containers in containers that are looked into


def registered(subject: Subject) -> CheckResult:
    """Every layer and weight that the module holds is one that torch knows of."""
    known = {id(m) for m in subject.module.modules()}
    known |= {id(t) for t in (*subject.module.parameters(), *subject.module.buffers())}
    layers: dict[str, int] = {}
    weights: list[str] = []
    plain: list[str] = []
    for name, owner in subject.module.named_modules():
        for place, value in _held(vars(owner), name):
            if id(value) in known:
                continue
            known.add(id(value))
            if isinstance(value, nn.Module):
                layers[place] = sum(p.numel() for p in value.parameters())
            elif isinstance(value, nn.Parameter) or value.requires_grad:
                weights.append(place)
            elif value.is_floating_point() and value.numel() > 1:
                plain.append(place)
    lost = {place: n for place, n in layers.items() if n}
    expected = "each is a registered submodule, parameter or buffer"
    if lost or weights:
        places = [*lost, *weights]
        size = f", {sum(lost.values()):,} parameters" if lost else ""
        return CheckResult(
            "registered",
            0,
            "fail",
            f"{len(places)} hidden from torch{size}: {_some(places)}",
            expected,
            "they are neither trained nor saved nor moved to a device: nn.ModuleList, nn.ModuleDict or nn.ParameterList"
            " in place of the list or dict; nn.Parameter as an attribute of the module",
            places[0],
        )
    if plain:
        return CheckResult(
            "registered",
            0,
            "warn",
            f"{len(plain)} tensors that are no buffers: {_some(plain)}",
            expected,
            "they are not saved, and stay behind when the module moves to a GPU: self.register_buffer(name, tensor)",
            plain[0],
        )
    count = sum(1 for _ in subject.module.parameters())
    return CheckResult("registered", 0, "ok", f"{count:,} parameters, none hidden", expected)


def _held(attributes: dict[str, Any], name: str) -> Iterator[tuple[str, nn.Module | Tensor]]:
    """Modules and tensors in plain attributes, in containers and closures among them, with where they are."""
    inside = ("_parameters", "_buffers", "_modules")
    for key, value in attributes.items():
        if key not in inside and not key.startswith("__") and "hook" not in key:
            yield from _within(value, f"{name}.{key}" if name else key, 0)


def _within(value: Any, place: str, depth: int) -> Iterator[tuple[str, nn.Module | Tensor]]:
    if isinstance(value, nn.Module | Tensor):
        yield place, value
    elif depth >= _DEEP:
        return
    elif isinstance(value, list | tuple | set | frozenset):
        for number, item in enumerate(value):
            yield from _within(item, f"{place}[{number}]", depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _within(item, f"{place}[{key!r}]", depth + 1)
    elif isinstance(value, types.FunctionType) and value.__closure__:
        for variable, cell in zip(value.__code__.co_freevars, value.__closure__, strict=False):
            yield from _within(_content(cell), f"{place} (its variable {variable})", depth + 1)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def device(subject: Subject) -> CheckResult:
    """Moved elsewhere, it runs there: no tensor of its own stays behind, and none is made on a device by name."""
    expected = "it runs on the device that it is moved to"
    if subject.plan.graph is not None or subject.plan.packed:
        return CheckResult("device", 0, "n/a", "not measured for this kind of call", expected)
    inputs = subject.batch(0)
    try:
        elsewhere = copy.deepcopy(subject.module).to("meta")
        ids = inputs.input_ids.to("meta")
        target = None if inputs.target_ids is None else inputs.target_ids.to("meta")
        with torch.no_grad():
            call_logits(elsewhere, subject.plan, ids, target_ids=target)
    except Exception as error:  # noqa: BLE001  (a stranger's code may raise anything; what it says decides)
        words = str(error)
        line, _, _ = blame(error).partition("\n")
        if "device" not in words or "meta" not in words or "item" in words:
            return CheckResult("device", 0, "n/a", f"cannot be told without values: {type(error).__name__}", expected)
        cause = "a tensor there is made on the CPU, or is no buffer: device=ids.device, or self.register_buffer"
        return CheckResult("device", 0, "warn", f"{type(error).__name__}: {_first(words)}", expected, cause, line)
    return CheckResult("device", 0, "ok", "every tensor moves with the module", expected)


def _first(words: str) -> str:
    return words.partition("\n")[0][:160]


def tying(subject: Subject) -> CheckResult:
    """Which weights are one and the same."""
    names: dict[int, list[str]] = {}
    for name, p in subject.module.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    shared = [" = ".join(group) for group in names.values() if len(group) > 1]
    if not shared:
        return CheckResult("tied weights", 0, "note", "none")
    return CheckResult("tied weights", 0, "note", _some(shared))


def _some(places: list[str]) -> str:
    return ", ".join(places[:4]) + (f" and {len(places) - 4} more" if len(places) > 4 else "")

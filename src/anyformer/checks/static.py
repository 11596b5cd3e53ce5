"""Tier 0: what a module holds, without judging what it computes.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import copy
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from anyformer.checks.results import CheckResult
from anyformer.checks.subject import Subject
from anyformer.models.blame import blame, here
from anyformer.models.calling import call_logits

_DEEP = 4  # containers in containers that are looked into


def registered(subject: Subject) -> CheckResult:
    """Every layer and weight that the module holds is one that torch knows of."""
    return held(subject.module)


def held(module: nn.Module) -> CheckResult:
    """The same of a module that cannot be called."""
    known = {id(m) for m in module.modules()}
    known |= {id(t) for t in (*module.parameters(), *module.buffers())}
    layers: dict[str, int] = {}
    weights: list[str] = []
    plain: list[str] = []
    for name, owner in module.named_modules():
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
    count = sum(1 for _ in module.parameters())
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
    cause = "a tensor there is made on the CPU, or is no buffer: device=ids.device, or self.register_buffer"
    mixed = _Mixed()
    try:
        elsewhere = copy.deepcopy(subject.module).to("meta")
        ids = inputs.input_ids.to("meta")
        target = None if inputs.target_ids is None else inputs.target_ids.to("meta")
        with torch.no_grad(), mixed:
            call_logits(elsewhere, subject.plan, ids, target_ids=target)
    except Exception as error:  # noqa: BLE001  (a stranger's code may raise anything; what it says decides)
        words = str(error)
        line, _, _ = blame(error).partition("\n")
        if mixed.line is None and ("device" not in words or "meta" not in words or "item" in words):
            return CheckResult("device", 0, "n/a", f"cannot be told without values: {type(error).__name__}", expected)
        if mixed.line is None:
            return CheckResult("device", 0, "warn", f"{type(error).__name__}: {_first(words)}", expected, cause, line)
    if mixed.line is not None and (name := _global_device(subject.module, mixed.line)):
        measured = f"tensors are made on {name}, which its file chooses once: it runs there alone"
        return CheckResult("device", 0, "note", measured, expected, "", mixed.line)
    if mixed.line is not None:
        return CheckResult(
            "device", 0, "warn", "a tensor on the CPU meets those elsewhere", expected, cause, mixed.line
        )
    return CheckResult("device", 0, "ok", "every tensor moves with the module", expected)


def _global_device(module: nn.Module, line: str) -> str:
    """A name of the file's own, of a device, that a line of it gives: device = "cuda" if … else "cpu" at its top."""
    named = re.findall(r"device\s*=\s*([A-Za-z_]\w*)\b(?!\s*[.(])|\.to\(([A-Za-z_]\w*)\)", line)
    known = [vars(sys.modules.get(type(m).__module__, object)) for m in module.modules()]
    for name in (a or b for a, b in named):
        if any(isinstance(scope.get(name), str | torch.device) for scope in known):
            return str(name)
    return ""


class _Mixed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The first line at which a tensor of the CPU meets one of another device, where a GPU would refuse it.

    Indices into a tensor and single numbers may come from the CPU.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.line: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in tree_flatten((args, kwargs or {}))[0] if isinstance(t, Tensor)]
        kinds = {t.device.type for t in given if t.dim() or t.device.type != "cpu"}
        name = str(func)
        moved = "_to_copy" in name and (kwargs or {}).get("device") is not None and kinds == {"meta"}
        moved = moved and given[0].dim() > 1  # pack_padded_sequence wants the lengths there
        if self.line is None and moved and torch.device((kwargs or {})["device"]).type == "cpu":
            self.line = here()
        if self.line is None and len(kinds) > 1 and not any(free in name for free in ("index", "copy")):
            self.line = here()
        return func(*args, **(kwargs or {}))


def _first(words: str) -> str:
    return words.partition("\n")[0][:160]


def tying(subject: Subject) -> CheckResult:
    """Which weights are one and the same; none by mistake, and none that was meant to be."""
    name, expected = "tied weights", "one block for each place; what is tied is one parameter"
    repeated = _one_in_many_places(subject.module)
    if repeated:
        cause = "[Block()] * n is one block n times: build each in a loop, [Block() for _ in range(n)]"
        return CheckResult(
            name, 0, "warn", f"one and the same: {' = '.join(repeated[:4])}", expected, cause, repeated[0]
        )
    doubled = _two_names(subject.module)
    if doubled:
        cause = "one part does two things: build one for each; meant so, nothing needs to change"
        return CheckResult(name, 0, "warn", f"one and the same: {' = '.join(doubled)}", expected, cause, doubled[0])
    copied = None if subject.trained else _copied(subject.module)
    if copied:
        cause = "only the values were copied: the two part ways at the first step; head.weight = embedding.weight ties"
        return CheckResult(name, 0, "warn", f"equal, yet two: {' and '.join(copied)}", expected, cause, copied[0])
    names: dict[int, list[str]] = {}
    for key, p in subject.module.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(key)
    shared = [" = ".join(group) for group in names.values() if len(group) > 1]
    return CheckResult(name, 0, "note", _some(shared) if shared else "none")


def _one_in_many_places(module: nn.Module) -> list[str]:
    """Names of a module with weights that stands in several places of one list."""
    for name, holder in module.named_modules():
        if not isinstance(holder, nn.ModuleList | nn.Sequential):
            continue
        places: dict[int, list[str]] = {}
        for key, child in holder._modules.items():
            if child is not None and next(child.parameters(), None) is not None:
                places.setdefault(id(child), []).append(f"{name}.{key}" if name else key)
        for found in places.values():
            if len(found) > 1:
                return found
    return []


def _two_names(module: nn.Module) -> list[str]:
    """Names under which one parent has one part with weights twice: a norm, an attention."""
    for name, parent in module.named_modules():
        if isinstance(parent, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            continue
        places: dict[int, list[str]] = {}
        for key, child in parent._modules.items():
            if child is not None and not isinstance(child, nn.Embedding) and next(child.parameters(), None) is not None:
                places.setdefault(id(child), []).append(f"{name}.{key}" if name else key)
        twice = next((found for found in places.values() if len(found) > 1), [])
        if twice and name:  # of the whole model a head, or an alias, may have two names
            return twice
    return []


def _copied(module: nn.Module) -> tuple[str, str] | None:
    """An embedding and a head of random values that are equal, and two."""
    tables = [(n, m.weight) for n, m in module.named_modules() if isinstance(m, nn.Embedding)]
    heads = [(n, m.weight) for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    for name, table in tables:
        for other, weight in heads:
            same = weight is not table and weight.shape == table.shape and weight.device == table.device
            if same and float(table.detach().float().std()) > 0 and torch.equal(weight, table):
                return f"{name}.weight", f"{other}.weight"
    return None


def vocabulary(subject: Subject) -> CheckResult:
    """Every id that can be read can be written."""
    name, plan = "vocabulary", subject.plan
    rows = plan.target_vocab if subject.two else plan.embedding_rows
    expected = "as many logits as ids that are read"
    if not subject.writes or rows is None:
        return CheckResult(name, 0, "n/a", "it gives no logits of tokens" if not subject.writes else "not known")
    if plan.vocab_size == rows - 1:
        cause = "one more row than logits: the last id is read, and can be no target; a row for padding may be meant"
        return CheckResult(name, 0, "warn", f"{rows:,} ids, {plan.vocab_size:,} logits", expected, cause)
    return CheckResult(
        name, 0, "ok" if plan.vocab_size == rows else "note", f"{rows:,} ids, {plan.vocab_size:,} logits", expected
    )


def _some(places: list[str]) -> str:
    return ", ".join(places[:4]) + (f" and {len(places) - 4} more" if len(places) > 4 else "")

"""Scripts without a class of their own, which build the model of a library's: ``model = GPT2LMHeadModel(config)``."""

from __future__ import annotations

import ast
import inspect
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from anyformer.models.building.written import without_tail
from anyformer.models.files.definitions import work

_WRAPPER = re.compile(r"Wrapper|Parallel|Trainer")
"""What is put around a finished model for its training: AutoregressiveWrapper, DataParallel."""
_BUILDERS = ("from_config", "get_peft_model")
_CHANGES = ("apply", "resize_token_embeddings", "tie_weights", "init_weights", "add_module", "register_buffer")
"""Methods of a model that change what it is; others train it, move it or save it."""
_PLAIN = (int, float, str, bool, torch.device, torch.dtype)
_MODEL = re.compile(r"model|net|lm|gpt|transformer", re.I)


@dataclass(frozen=True)
class Assigned:
    """A variable that holds the model, and the statements that give it its value."""

    name: str
    statements: tuple[ast.stmt, ...]
    wrappers: tuple[str, ...]
    """Calls that wrap the model for training and are left out."""

    def factory(self, module: types.ModuleType) -> Callable[[], nn.Module]:
        """A function that runs the statements in a copy of the file's names and returns the model."""
        code = compile(ast.Module(list(self.statements), []), str(module.__file__), "exec", dont_inherit=True)

        def build() -> nn.Module:
            space = dict(vars(module))
            exec(code, space)
            built: nn.Module = space[self.name]
            return built

        build.__name__ = build.__qualname__ = self.name
        build.__module__ = module.__name__
        return build


def assigned_models(tree: ast.Module, module: types.ModuleType) -> list[Assigned]:
    """The variables of the module level, or under ``__main__``, that hold a model which no other of them takes."""
    statements = list(_level(tree.body))
    found: dict[str, Assigned | None] = {}
    for node in statements:
        name = _target(node)
        if name and _builds(node, module) and name not in found:
            found[name] = _closure(name, statements, module)
    whole = [a for a in found.values() if a is not None]
    parts = {n for a in whole for s in a.statements for n in _reads(s) if n != a.name}
    whole = [a for a in whole if a.name not in parts]
    named = [a for a in whole if _MODEL.search(a.name)]
    return named if len(whole) > 1 and named else whole


def holds_model(tree: ast.Module, module: types.ModuleType, is_own: Callable[[str], bool]) -> bool:
    """Whether the file has a module class, one imported from its own folder included, or a variable with a model.

    is_own: whether a module's name is that of one of the model's files.
    """
    folder = Path(module.__file__ or "").parent
    for cls in list(vars(module).values()):
        if not inspect.isclass(cls) or not issubclass(cls, nn.Module):
            continue
        beside = is_own(cls.__module__) and folder in Path(inspect.getfile(cls)).resolve().parents
        if cls.__module__ == module.__name__ or beside:
            return True
    return bool(assigned_models(tree, module))


def assigned_model(text: str, module: types.ModuleType, name: str | None = None) -> Assigned | None:
    """The one of that name, else the only one; None where there is none or are several."""
    found = [a for a in assigned_models(ast.parse(text), module) if name in (None, a.name)]
    return found[0] if len(found) == 1 else None


def _level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run once when the file runs as a program."""
    for node in body:
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            yield from _level(node.body)
        else:
            yield node


def _target(node: ast.stmt) -> str | None:
    target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else None
    return target.id if isinstance(target, ast.Name) else None


def _builds(node: ast.stmt, module: types.ModuleType) -> bool:
    """Whether it assigns a call of a module's class, or of a function that gives one by its name."""
    value = without_tail(node.value) if isinstance(node, ast.Assign) else None
    if not isinstance(value, ast.Call):
        return False
    target = _resolved(value.func, module)
    if inspect.isclass(target):
        return issubclass(target, nn.Module) and not _is_loss(target)
    return target is not None and getattr(target, "__name__", "") in _BUILDERS


def _is_loss(cls: type) -> bool:
    return cls.__module__.startswith("torch.nn.modules.loss") or "Loss" in cls.__name__


def _resolved(node: ast.expr, module: types.ModuleType) -> object:
    if isinstance(node, ast.Name):
        return vars(module).get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(_resolved(node.value, module), node.attr, None)
    return None


def _reads(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _changed(node: ast.AST, model: str) -> set[str]:
    """Names that a statement binds, and of objects that it changes: ``config.n_layer = 2``, ``parts.append(…)``."""
    found = set()
    for part in ast.walk(node):
        target: ast.AST | None = None
        if isinstance(part, ast.Name | ast.Attribute | ast.Subscript) and isinstance(part.ctx, ast.Store):
            target = part
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            called = part.value.func
            own = isinstance(called, ast.Attribute) and getattr(called.value, "id", "") == model
            target = called if isinstance(called, ast.Attribute) and (not own or called.attr in _CHANGES) else None
        while isinstance(target, ast.Attribute | ast.Subscript):
            target = target.value
        if isinstance(target, ast.Name):
            found.add(target.id)
    return found


def _closure(name: str, statements: list[ast.stmt], module: types.ModuleType) -> Assigned | None:
    """The statements that the variable's value needs, in their order; devices and wrappers left out.

    None where one of them does work: what the model would be without it is not known.
    """
    wanted, kept, wrappers = {name}, list[ast.stmt](), list[str]()
    for node in reversed(statements):
        definition = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom)
        if definition or not wanted & _changed(node, name):
            continue
        if _target(node) == name and not _builds(node, module):
            continue  # model = model.to(device), model = torch.compile(model)
        if isinstance(node, ast.Assign):
            value = without_tail(node.value)
            called = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
            if _target(node) == name and name in _reads(value) and _WRAPPER.search(called):
                wrappers.append(called)
                continue
            node = ast.copy_location(ast.Assign(node.targets, value), node)
        if work(node):
            return None
        # a plain value is there already, or stands in for a statement that was not run
        wanted |= {n for n in _reads(node) if not isinstance(vars(module).get(n), _PLAIN)}
        kept.append(node)
    return Assigned(name, tuple(reversed(kept)), tuple(wrappers))

"""Which class of a file is the model."""

from __future__ import annotations

import ast
import inspect
import types
from pathlib import Path
from typing import Any

from torch import nn

from anyformer.core.errors import ConstructError
from anyformer.core.findings import Finding

CLASS_KEYS = ("class_name", "model_name", "architectures")
"""Keys of config.json that may name the class: ours, the builder's, Hugging Face's."""


def module_class(found: Any, name: str, where: str) -> type[nn.Module]:
    """``found`` if it is a class of nn.Module, else ConstructError."""
    if inspect.isclass(found) and issubclass(found, nn.Module):
        return found
    kind = "a class" if inspect.isclass(found) else f"of type {type(found).__name__}"
    raise ConstructError(f"{name} in {where} is not a subclass of torch.nn.Module", f"it is {kind}")


def choose_class(
    module: types.ModuleType, source: str, path: Path, name: str | None, config: dict[str, Any] | None
) -> tuple[type[nn.Module], list[Finding]]:
    """The model's class: by name, by config.json, or the only nn.Module that no other class of the file uses.

    source: the file's text. Raises ConstructError naming the candidates where there are none or several.
    """
    classes = _classes(module)
    if name is not None:
        return _by_name(module, classes, path, name), []
    if not classes:
        raise ConstructError(
            f"{path} defines no torch.nn.Module",
            _what_it_defines(source),
            "define the model as a class that inherits from torch.nn.Module",
        )
    for key in CLASS_KEYS:
        value = (config or {}).get(key)
        for candidate in value if isinstance(value, list) else [value]:
            if isinstance(candidate, str) and candidate in classes:
                return classes[candidate], [Finding("class", "note", candidate, reason=f"config.json names it ({key})")]
    used = _used_by_others(source, set(classes))
    top = [n for n in classes if n not in used] or list(classes)
    if len(top) == 1:
        why = "the only nn.Module of the file" if len(classes) == 1 else "the only nn.Module that no other uses"
        return classes[top[0]], [Finding("class", "note", top[0], reason=why)]
    raise ConstructError(
        f"{path} holds several models: {', '.join(top)}",
        "none of them is used by another, so which one is meant cannot be told",
        "name it: " + "\nor: ".join(f"{path}:{n}" for n in top),
    )


def _classes(module: types.ModuleType) -> dict[str, type[nn.Module]]:
    """nn.Module classes that the file defines; if it defines none, those it imported from its own folder."""
    found = {n: c for n, c in vars(module).items() if inspect.isclass(c) and issubclass(c, nn.Module)}
    own = {n: c for n, c in found.items() if c.__module__ == module.__name__ and c.__name__ == n}
    if own:
        return own
    folder = Path(module.__file__ or "").parent
    return {n: c for n, c in found.items() if _file_of(c).parent == folder}


def _file_of(cls: type) -> Path:
    try:
        return Path(inspect.getfile(cls)).resolve()
    except (TypeError, OSError):  # a built-in class, or one whose module is gone
        return Path()


def _by_name(module: types.ModuleType, classes: dict[str, type[nn.Module]], path: Path, name: str) -> type[nn.Module]:
    if not hasattr(module, name):
        raise ConstructError(
            f"{path} has no class {name}",
            f"its models: {', '.join(classes) or 'none'}",
            "\n".join(f"{path}:{n}" for n in classes),
        )
    return module_class(getattr(module, name), name, str(path))


def _what_it_defines(source: str) -> str:
    nodes = ast.parse(source).body
    names = [n.name for n in nodes if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    return f"it defines: {', '.join(names)}" if names else "it defines no class and no function"


def _used_by_others(source: str, classes: set[str]) -> set[str]:
    """Classes that another one names in its body or bases, directly or through functions and constants of the file."""
    names: dict[str, set[str]] = {}
    for node in ast.parse(source).body:
        mentioned = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        for bound in _bound_names(node):
            names.setdefault(bound, set()).update(mentioned)
    used: set[str] = set()
    for start in classes:
        reached, todo = set(), list(names.get(start, ()))
        while todo:
            name = todo.pop()
            if name in reached or name == start:
                continue
            reached.add(name)
            if name not in classes:
                todo += names.get(name, ())
        used |= reached & classes
    return used


def _bound_names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return []

"""Classes of a user's file that only keep values: making one runs none of the file's work."""

from __future__ import annotations

import ast
import builtins
import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn

_LIBRARIES = ("builtins", "types", "typing", "argparse", "abc", "enum", "collections", "transformers", "pydantic")
"""Packages whose classes may be bases of a record: they run their own code, not the file's."""
_RUNS = ("__new__", "__setattr__", "__getattribute__", "__getattr__", "__del__", "__call__", "__set__", "__get__")
_MADE = ("__init__", "__post_init__")
_PASSED_ON = ("items", "keys", "values", "get", "pop", "update", "setdefault", "append")
"""Methods of dicts and lists."""
_BUILTIN = ("setattr", "isinstance", "hasattr", "super", "vars", "ValueError", "TypeError", "KeyError", "field")


class Records:
    """Which classes and functions of one file may be called to learn a value."""

    def __init__(self, tree: ast.Module, module: types.ModuleType, may_call: Callable[[Any], bool]) -> None:
        """may_call: whether calling an object that is not of this file runs nothing of it."""
        self._module, self._may_call = module, may_call
        self._definitions: dict[str, list[ast.ClassDef | ast.FunctionDef]] = {}
        for node in tree.body:
            self._add(node, "")
        self._known: dict[int, bool] = {}

    def _add(self, node: ast.AST, prefix: str) -> None:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            name = prefix + node.name
            self._definitions.setdefault(name, []).append(node)
            for member in node.body if isinstance(node, ast.ClassDef) else ():
                self._add(member, f"{name}.")

    def is_plain(self, target: Any) -> bool:
        """Whether a class of the file only keeps what it is given, or a function only fills such a record."""
        if id(target) not in self._known:
            self._known[id(target)] = False  # a class that makes itself
            self._known[id(target)] = self._looked_at(target)
        return self._known[id(target)]

    def _looked_at(self, target: Any) -> bool:
        if getattr(target, "__module__", None) != self._module.__name__:
            return False
        # a name that is defined twice: which of them this is cannot be told
        found = self._definitions.get(getattr(target, "__qualname__", ""), [])
        if len(found) != 1:
            return False
        node = found[0]
        if isinstance(node, ast.FunctionDef):
            inner = inspect.unwrap(target.__func__ if inspect.ismethod(target) else target)
            marks = {_last(d) for d in node.decorator_list} <= {"staticmethod", "classmethod"}
            return isinstance(inner, types.FunctionType) and marks and self._body(node.body)
        return inspect.isclass(target) and self._is_record(target, node)

    def _is_record(self, cls: type, node: ast.ClassDef) -> bool:
        if issubclass(cls, nn.Module) or not _from_library(type(cls)):
            return False
        for base in cls.__mro__[1:]:
            if base.__module__ == self._module.__name__:
                if not self.is_plain(base):
                    return False
            elif not _from_library(base):
                return False
        own = {m.name: m for m in node.body if isinstance(m, ast.FunctionDef)}
        if any(name in own for name in _RUNS) or any(_last(d) == "setter" for m in own.values() for d in _marks(m)):
            return False
        if any(name in _RUNS for name in vars(cls) if name not in ("__new__", "__getattr__")):
            return False
        if any(
            _last(d.func if isinstance(d, ast.Call) else d) not in ("dataclass", "total_ordering") for d in _marks(node)
        ):
            return False
        if any(name in vars(cls) and name not in own and not _generated(cls, name) for name in _MADE):
            return False
        return all(self._body(own[name].body) for name in _MADE if name in own) and self._factories(node)

    def _factories(self, node: ast.ClassDef) -> bool:
        """default_factory= of the fields: a lambda with a plain value, or a class such as list."""
        for part in ast.walk(node):
            if isinstance(part, ast.keyword) and part.arg == "default_factory":
                value = part.value.body if isinstance(part.value, ast.Lambda) else None
                if not (self._expression(value) if value is not None else self._callable(part.value)):
                    return False
        return True

    def _body(self, statements: list[ast.stmt]) -> bool:
        return all(self._statement(s) for s in statements)

    def _statement(self, node: ast.stmt) -> bool:
        if isinstance(node, ast.If | ast.For):
            test = node.test if isinstance(node, ast.If) else node.iter
            return self._expression(test) and self._body(node.body) and self._body(node.orelse)
        simple = ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr | ast.Return | ast.Assert | ast.Raise | ast.Pass
        return isinstance(node, simple) and all(self._expression(child) for child in ast.iter_child_nodes(node))

    def _expression(self, node: ast.AST) -> bool:
        for part in ast.walk(node):
            if isinstance(part, ast.Lambda | ast.Await | ast.Yield | ast.YieldFrom | ast.NamedExpr):
                return False
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Pow | ast.LShift):
                return False
            if isinstance(part, ast.Call) and not self._callable(part.func):
                return False
        return True

    def _callable(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Attribute):
            if node.attr in ("__init__", "__post_init__"):
                return isinstance(node.value, ast.Call) and _last(node.value.func) == "super"
            if node.attr in _PASSED_ON:
                return True
        if isinstance(node, ast.Name) and node.id in _BUILTIN and node.id not in vars(self._module):
            return True
        target = self._resolved(node)
        return target is not None and (self._may_call(target) or self.is_plain(target))

    def _resolved(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return vars(self._module).get(node.id, vars(builtins).get(node.id))
        if isinstance(node, ast.Attribute):
            base = self._resolved(node.value)
            return vars(base).get(node.attr) if isinstance(base, types.ModuleType) else None
        return None


def _generated(cls: type, name: str) -> bool:
    """Whether a method was made by dataclass or NamedTuple: it has no line in the file."""
    code = getattr(vars(cls)[name], "__code__", None)
    return code is not None and code.co_filename.startswith("<")


def _from_library(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in _LIBRARIES


def _marks(node: ast.ClassDef | ast.FunctionDef) -> list[ast.expr]:
    return node.decorator_list


def _last(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""

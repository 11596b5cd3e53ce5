"""Which names of a file use which others, from its syntax alone."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator


def bound_names(node: ast.stmt) -> list[str]:
    """Names that a statement at module level gives a value to, those inside its blocks included."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(a.asname or a.name).partition(".")[0] for a in node.names]
    found: list[str] = []
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            found.append(part.id)
        elif isinstance(part, ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef) and part is not node:
            found += bound_names(part)
    return list(dict.fromkeys(found))


def mentions(tree: ast.Module) -> dict[str, set[str]]:
    """Each name of the module level with the names that its definition reads."""
    names: dict[str, set[str]] = {}
    for node in _statements(tree.body):
        read = _global_reads(node) | _in_texts(node)
        for bound in bound_names(node):
            names.setdefault(bound, set()).update(read)
    return names


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements at module level, those of its blocks one by one; what runs only as a program is not among them."""
    for node in body:
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.If | ast.For | ast.While | ast.With | ast.Try):
            for name in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)
        else:
            yield node


def _global_reads(node: ast.AST) -> set[str]:
    """Names that a statement or function reads and does not define itself: its own parameters and variables are not."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        arguments = node.args
        own = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        own |= {a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None}
        body = node.body if isinstance(node.body, list) else [node.body]
        stored = {n.id for b in body for n in ast.walk(b) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        outside = [*arguments.defaults, *(d for d in arguments.kw_defaults if d), *getattr(node, "decorator_list", [])]
        outside += [a.annotation for a in (*arguments.args, *arguments.kwonlyargs) if a.annotation is not None]
        if not isinstance(node, ast.Lambda) and node.returns is not None:
            outside.append(node.returns)
        inside = set[str]().union(*(_global_reads(b) for b in body)) - own - stored
        return inside.union(*(_global_reads(o) for o in outside))
    if isinstance(node, ast.ClassDef):
        return _class_reads(node)
    found = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else set[str]()
    return found.union(*(_global_reads(child) for child in ast.iter_child_nodes(node)))


def _class_reads(node: ast.ClassDef) -> set[str]:
    """Of a class: a name that its body has bound before is read from there, though not by its methods."""
    found = set[str]().union(*map(_global_reads, (*node.decorator_list, *node.bases, *node.keywords)))
    bound: set[str] = set()
    for statement in node.body:
        own = set() if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else bound
        found |= _global_reads(statement) - own
        bound |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return found


def _in_texts(node: ast.stmt) -> set[str]:
    """Class names in annotations that are written as text: ``bert: "BERT"``."""
    if not isinstance(node, ast.ClassDef):
        return set()
    annotations = [a.annotation for a in ast.walk(node) if isinstance(a, ast.arg) and a.annotation is not None]
    return {a.value for a in annotations if isinstance(a, ast.Constant) and isinstance(a.value, str)}


def reached(names: dict[str, set[str]], start: str, stop: Iterable[str] = ()) -> set[str]:
    """Names that ``start`` uses, directly or through others; names in ``stop`` are reached but not followed."""
    halted, found, todo = set(stop), set[str](), list(names.get(start, ()))
    while todo:
        name = todo.pop()
        if name in found or name == start:
            continue
        found.add(name)
        if name not in halted:
            todo += names.get(name, ())
    return found


def _asks_by_name(node: ast.AST) -> bool:
    """``getattr(self, "attend_" + kind)``: any method may be meant."""
    named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
    return named and len(node.args) > 1 and not isinstance(node.args[1], ast.Constant)  # type: ignore[attr-defined]


_ENTRIES = frozenset(("forward", "encode", "decode", "project", "init_weights", "reset_parameters"))
"""Methods that are called from outside of the class; those with two underscores are, too."""


def lived(tree: ast.Module, start: str) -> set[str]:
    """Names that building and calling the class ``start`` may read: ``reached`` without methods that nothing calls.

    A method counts as called where anything that is reached mentions an attribute of its name.
    """
    top: dict[str, list[ast.stmt]] = {}
    for node in _statements(tree.body):
        for bound in bound_names(node):
            top.setdefault(bound, []).append(node)
    methods: dict[str, list[ast.stmt]] = {}
    by_any_name = False
    found, attributes, todo = set[str](), set[str](), [*top.get(start, ())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.ClassDef):
            parts: list[ast.AST] = [*node.bases, *node.keywords, *node.decorator_list]
            for inner in node.body:
                if not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    parts.append(inner)
                elif by_any_name or inner.name in _ENTRIES | attributes or inner.name.startswith("__"):
                    todo.append(inner)
                else:
                    methods.setdefault(inner.name, []).append(inner)
        else:
            parts = [node]
        for part in parts:
            new = _global_reads(part) - found
            found |= new
            todo += [statement for name in new for statement in top.get(name, ())]
            mentioned = {n.attr for n in ast.walk(part) if isinstance(n, ast.Attribute)} - attributes
            attributes |= mentioned
            by_any_name = by_any_name or any(_asks_by_name(n) for n in ast.walk(part))
            called = list(methods) if by_any_name else mentioned
            todo += [method for name in called for method in methods.pop(name, ())]
    return found


def called(node: ast.Call) -> str:
    """The last name of what is called: ``Linear`` of ``nn.Linear(3, 4)``."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")

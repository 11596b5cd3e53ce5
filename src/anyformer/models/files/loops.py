"""Statements of a script that fill lists and tables: ``for i, word in enumerate(words): ids[word] = i``."""

from __future__ import annotations

import ast

FILLING = frozenset(("append", "add", "update", "extend", "insert", "setdefault"))
COUNTING = frozenset(("len", "max", "min", "sum"))
_PLAIN = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.If, ast.For, ast.Pass, ast.Continue, ast.Break)


def fills_only(loop: ast.For) -> bool:
    """Whether a loop, by its statements, sets names, fills containers and calls; what it calls is another question."""
    for node in ast.walk(loop):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            return False
        if isinstance(node, ast.Yield | ast.YieldFrom | ast.Await | ast.NamedExpr | ast.Lambda):
            return False
        if isinstance(node, ast.stmt) and not isinstance(node, _PLAIN):
            return False
    return True


def is_filling(node: ast.AST) -> bool:
    """Whether it is ``name.append(…)`` or its like."""
    is_method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FILLING
    return is_method and isinstance(node.func.value, ast.Name)  # type: ignore[attr-defined]


def set_in(loop: ast.For) -> set[str]:
    """Names that the loop gives a value to."""
    return {n.id for n in ast.walk(loop) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def filled_by(node: ast.stmt) -> set[str]:
    """Names of containers that a statement puts something into."""
    found = set()
    for part in ast.walk(node):
        if is_filling(part):
            found.add(part.func.value.id)  # type: ignore[attr-defined]
        elif isinstance(part, ast.Subscript) and isinstance(part.ctx, ast.Store) and isinstance(part.value, ast.Name):
            found.add(part.value.id)
    return found


def counted_in(node: ast.stmt) -> set[str]:
    """Names whose entries an assignment counts: ``vocab_size = len(ids)``."""
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) or node.value is None:
        return set()
    calls = [n for n in ast.walk(node.value) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    counting = [call for call in calls if call.func.id in COUNTING]  # type: ignore[attr-defined]
    return {n.id for call in counting for arg in call.args for n in ast.walk(arg) if isinstance(n, ast.Name)}

"""Numbers that source writes out, computed only where they stay small: 9**9**9 never ends."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

_BITS = 4096
"""Of an integer; sizes of models have a few dozen."""
_ITEMS = 10**8
"""Of a list or text that is written as [0] * n."""

Number = int | float


class TooBig(Exception):
    """A number or list that takes more time or memory than a model's file has use for."""

    def __init__(self, node: ast.AST, words: str) -> None:
        super().__init__(words)
        self.node = node


def folded(node: ast.AST, values: Mapping[str, Any] | None = None) -> Number | None:
    """The value of arithmetic on constants and on the names in ``values``; None for anything else. Raises TooBig."""
    if isinstance(node, ast.Expression | ast.Expr):
        node = node.value if isinstance(node, ast.Expr) else node.body
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, int | float) else None
    if isinstance(node, ast.Name):
        value = (values or {}).get(node.id)
        return value if isinstance(value, int | float) else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = folded(node.operand, values)
        return None if value is None else -value
    if not isinstance(node, ast.BinOp):
        return None
    left, right = folded(node.left, values), folded(node.right, values)
    if isinstance(node.op, ast.Mult):
        for many, other in ((left, node.right), (right, node.left)):
            if isinstance(many, int) and many > _ITEMS and _is_sequence(other, values):
                raise TooBig(node, f"makes a list of {many:.3g} items")
    if left is None or right is None:
        return None
    if isinstance(node.op, ast.Pow | ast.LShift) and isinstance(left, int) and isinstance(right, int):
        bits = right * left.bit_length() if isinstance(node.op, ast.Pow) else right + left.bit_length()
        if bits > _BITS:
            raise TooBig(node, "computes a number of thousands of digits")
    return _computed(node.op, left, right)


def _computed(operator: ast.operator, left: Number, right: Number) -> Number | None:
    try:
        if isinstance(operator, ast.Add):
            return left + right
        if isinstance(operator, ast.Sub):
            return left - right
        if isinstance(operator, ast.Mult):
            return left * right
        if isinstance(operator, ast.FloorDiv):
            return left // right
        if isinstance(operator, ast.Pow):
            value = left**right
            return value if isinstance(value, int | float) else None  # (-8)**0.5 is complex
        if isinstance(operator, ast.LShift) and isinstance(left, int) and isinstance(right, int):
            return left << right
    except (ArithmeticError, ValueError):  # division by zero, overflow, a negative shift: the program's own error
        return None
    return None


def _is_sequence(node: ast.AST, values: Mapping[str, Any] | None) -> bool:
    if isinstance(node, ast.Name):
        return isinstance((values or {}).get(node.id), list | tuple | str | bytes)
    text = isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    return text or isinstance(node, ast.List | ast.Tuple)

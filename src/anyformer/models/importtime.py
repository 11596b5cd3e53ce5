"""What a file would do while it is loaded, beyond defining things."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anyformer.models.reviewrules import HARMLESS_CALLS, HARMLESS_DECORATORS

Found = tuple[ast.AST, str]


@dataclass(frozen=True)
class _About:
    postponed: bool
    """Annotations are not evaluated."""
    harmless: frozenset[str]
    """Names that may be called."""


def work_at_import(tree: ast.Module) -> Iterator[Found]:
    """Calls and loops outside definitions: at module level, in class bodies, decorators, defaults, annotations.

    What stands under ``if __name__ == "__main__":`` is passed over: a model's file is never run as a program.
    Functions that the file calls while it is loaded are named by the call itself.
    """
    postponed = any(
        isinstance(n, ast.ImportFrom) and n.module == "__future__" and any(a.name == "annotations" for a in n.names)
        for n in tree.body
    )
    plain = {node.name for node in tree.body if isinstance(node, ast.ClassDef) and _is_plain_record(node)}
    about = _About(postponed, HARMLESS_CALLS | plain)
    yield from _statements(tree.body, "while the file is loaded", about)


def _statements(body: Sequence[ast.stmt], when: str, about: _About) -> Iterator[Found]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _function(node, when, about)
        elif isinstance(node, ast.ClassDef):
            yield from _decorators(node.decorator_list, when, about)
            for expression in (*node.bases, *(keyword.value for keyword in node.keywords)):
                yield from _calls(expression, when, about)
            for keyword in node.keywords:
                if keyword.arg == "metaclass" and _last(keyword.value) not in ("ABCMeta", "EnumMeta", "type"):
                    yield keyword.value, "a metaclass of its own: it runs when the class is defined"
            yield from _statements(node.body, f"while the class {node.name} is defined", about)
        elif isinstance(node, ast.If):
            if not _is_main(node.test):
                yield from _calls(node.test, when, about)
                yield from _statements(node.body, when, about)
            yield from _statements(node.orelse, when, about)
        elif isinstance(node, ast.Try | ast.TryStar):
            for block in (node.body, *(handler.body for handler in node.handlers), node.orelse, node.finalbody):
                yield from _statements(block, when, about)
        elif isinstance(node, ast.For | ast.AsyncFor | ast.While):
            yield node, f"a loop runs {when}"
        elif isinstance(node, ast.With | ast.AsyncWith | ast.Match | ast.Delete):
            yield node, f"{type(node).__name__.lower()} runs {when}"
        elif isinstance(node, ast.Import | ast.ImportFrom | ast.Pass | ast.Global):
            continue
        else:
            yield from _others(node, when, about)


def _others(node: ast.stmt, when: str, about: _About) -> Iterator[Found]:
    """Assignments, expressions, assert, raise."""
    if isinstance(node, ast.AnnAssign):
        if not about.postponed:
            yield from _calls(node.annotation, when, about)
        if node.value is not None:
            yield from _calls(node.value, when, about)
        return
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    for target in targets:
        if any(isinstance(part, ast.Attribute | ast.Subscript) for part in ast.walk(target)):
            yield node, f"changes {ast.unparse(target)[:60]}, something outside this file perhaps, {when}"
    yield from _calls(node, when, about)


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, when: str, about: _About) -> Iterator[Found]:
    yield from _decorators(node.decorator_list, when, about)
    arguments = node.args
    for default in (*arguments.defaults, *(value for value in arguments.kw_defaults if value is not None)):
        yield from _calls(default, f"{when}, as a default value", about)
    if about.postponed:
        return
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    for annotation in (*(a.annotation for a in every if a is not None), node.returns):
        if annotation is not None:
            yield from _calls(annotation, f"{when}, as an annotation", about)


def _decorators(decorators: Sequence[ast.expr], when: str, about: _About) -> Iterator[Found]:
    for decorator in decorators:
        inner = decorator.func if isinstance(decorator, ast.Call) else decorator
        if _last(inner) not in HARMLESS_DECORATORS:
            yield decorator, f"the decorator {ast.unparse(inner)[:60]} runs {when}"
        if isinstance(decorator, ast.Call):
            for argument in (*decorator.args, *(keyword.value for keyword in decorator.keywords)):
                yield from _calls(argument, when, about)


def _calls(node: ast.AST, when: str, about: _About) -> Iterator[Found]:
    """Calls in an expression, those inside lambdas left out."""
    if isinstance(node, ast.Lambda):
        return
    if isinstance(node, ast.Call) and _last(node.func) not in about.harmless:
        yield node, f"{ast.unparse(node.func)[:60]}(…) is called {when}"
    if isinstance(node, ast.Await | ast.Yield | ast.YieldFrom):
        yield node, f"{type(node).__name__.lower()} {when}"
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, when, about)


def _last(node: ast.AST) -> str:
    """The last part of a dotted name; empty for anything that is no name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_plain_record(node: ast.ClassDef) -> bool:
    """A dataclass without bases and methods that run when it is made: ``Config()`` only keeps values."""
    names = {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
    marks = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    made = {"__init__", "__new__", "__post_init__", "__setattr__"}
    return not node.bases and not node.keywords and [_last(m) for m in marks] == ["dataclass"] and not names & made


def _is_main(test: ast.expr) -> bool:
    """``__name__ == "__main__"``, either way round, and nothing else beside it."""
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)):
        return False
    sides = (test.left, test.comparators[0])
    named = [s for s in sides if isinstance(s, ast.Name) and s.id == "__name__"]
    main = [s for s in sides if isinstance(s, ast.Constant) and s.value == "__main__"]
    return len(named) == len(main) == 1

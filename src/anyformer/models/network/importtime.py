"""What a file would do while it is loaded, beyond defining things."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anyformer.models.files.constants import TooBig, folded
from anyformer.models.files.syntax import bound_names
from anyformer.models.network.reviewrules import HARMLESS_CALLS, HARMLESS_DECORATORS, HARMLESS_MODULES, HOOKS

_MANY = 10**9
"""Steps; no model's file counts so far while it is loaded."""
Found = tuple[ast.AST, str]


@dataclass(frozen=True)
class _About:
    postponed: bool
    """Annotations are not evaluated."""
    plain: frozenset[str]
    """The file's own records: making one runs nothing."""
    own: frozenset[str]
    """Names that the file gives a meaning of its own, methods among them: they are not those that may be called."""
    packages: frozenset[str]
    """Names under which harmless packages are imported."""

    def may_call(self, node: ast.AST, harmless: frozenset[str] = HARMLESS_CALLS) -> bool:
        """Whether calling this does no work worth a remark."""
        name = _last(node)
        if isinstance(node, ast.Name) and name in self.plain:
            return True
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        known = isinstance(node, ast.Attribute) and isinstance(root, ast.Name) and root.id in self.packages
        return name in harmless and (known or name not in self.own)


def work_at_import(tree: ast.Module) -> Iterator[Found]:
    """Calls and loops outside definitions: at module level, in class bodies, decorators, defaults, annotations.

    What stands under ``if __name__ == "__main__":`` is never run; sizes and plain records there may be evaluated, so
    that numbers without end count there, too.
    Functions that the file calls while it is loaded are named by the call itself.
    """
    postponed = any(
        isinstance(n, ast.ImportFrom) and n.module == "__future__" and any(a.name == "annotations" for a in n.names)
        for n in tree.body
    )
    own, packages = _own_names(tree)
    about = _About(postponed, frozenset(), own, packages)
    records = {n.name for n in tree.body if isinstance(n, ast.ClassDef) and _is_plain_record(n, about)}
    about = _About(postponed, frozenset(records - _made_again(tree)), own, packages)
    for node in tree.body:
        for name in _given_names(node):
            if name in HOOKS or name in ("__getattr__", "__dir__"):
                yield node, f"defines {name}: {HOOKS.get(name, 'runs when a name of the file is asked for')}"
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
            for member in node.body:
                if not isinstance(member, ast.FunctionDef | ast.ClassDef):
                    for name in _given_names(member):
                        if name in HOOKS:
                            yield member, f"defines {name}: {HOOKS[name]}"
            yield from _statements(node.body, f"while the class {node.name} is defined", about)
        elif isinstance(node, ast.If):
            if _is_main(node.test):
                yield from (f for part in node.body for f in _endless(part, "where sizes are read"))
            else:
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
        if not about.may_call(inner, HARMLESS_DECORATORS):
            yield decorator, f"the decorator {ast.unparse(inner)[:60]} runs {when}"
        if isinstance(decorator, ast.Call):
            for argument in (*decorator.args, *(keyword.value for keyword in decorator.keywords)):
                yield from _calls(argument, when, about)


def _calls(node: ast.AST, when: str, about: _About) -> Iterator[Found]:
    """Calls in an expression, those inside lambdas left out unless they are handed to what calls them."""
    yield from _endless(node, when)
    yield from _called(node, when, about)


def _called(node: ast.AST, when: str, about: _About) -> Iterator[Found]:
    if isinstance(node, ast.Lambda):
        for default in (*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)):
            yield from _called(default, f"{when}, as a default value", about)
        return
    if isinstance(node, ast.Call):
        if not about.may_call(node.func):
            yield node, f"{ast.unparse(node.func)[:60]}(…) is called {when}"
        for function in _handed_on(node):
            if isinstance(function, ast.Lambda):
                yield from _called(function.body, when, about)
            elif not isinstance(function, ast.Constant) and not about.may_call(function):
                yield function, f"{ast.unparse(function)[:60]}(…) is called {when}, through {_last(node.func)}"
    if isinstance(node, ast.Await | ast.Yield | ast.YieldFrom):
        yield node, f"{type(node).__name__.lower()} {when}"
    for child in ast.iter_child_nodes(node):
        yield from _called(child, when, about)


def _handed_on(node: ast.Call) -> Iterator[ast.expr]:
    """Functions that a call gets as arguments and calls."""
    name = _last(node.func)
    if name in ("map", "filter", "reduce", "defaultdict") and node.args:
        yield node.args[0]
    if name in ("sorted", "sort", "min", "max"):
        yield from (k.value for k in node.keywords if k.arg == "key")


def _endless(node: ast.AST, when: str) -> Iterator[Found]:
    """Numbers and lists that do not fit into memory."""
    try:
        folded(node)
        for part in ast.walk(node):
            if isinstance(part, ast.BinOp):
                folded(part)
            elif isinstance(part, ast.Call) and _last(part.func) in ("range", "bytes", "bytearray"):
                for argument in part.args:
                    number = folded(argument)
                    if isinstance(number, int) and number > _MANY:
                        yield part, f"counts to more than {_MANY:,} {when}"
    except TooBig as error:
        yield error.node, f"{error} {when}"


def _own_names(tree: ast.Module) -> tuple[frozenset[str], frozenset[str]]:
    """Names that the file defines, and those of the harmless packages that it imports."""
    own: set[str] = set()
    packages: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                name = (alias.asname or alias.name).partition(".")[0]
                (packages if alias.name.partition(".")[0] in HARMLESS_MODULES else own).add(name)
        elif isinstance(node, ast.ImportFrom):
            harmless = not node.level and (node.module or "").partition(".")[0] in HARMLESS_MODULES
            for alias in node.names:
                name = alias.asname or alias.name
                if not harmless or name != alias.name:
                    own.add(name)
                elif name.islower() and not name.startswith("_"):
                    packages.add(name)
    for node in tree.body:
        own.update(name for name in _given_names(node) if name not in packages)
    return frozenset(own), frozenset(packages - own)


def _given_names(node: ast.stmt) -> list[str]:
    """Names that a statement at module level or in a class gives a value to, imports left out."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return []
    return bound_names(node)


def _made_again(tree: ast.Module) -> set[str]:
    """Names of classes that are given a second value."""
    names = [name for node in tree.body for name in bound_names(node)]
    return {name for name in names if names.count(name) > 1}


def _last(node: ast.AST) -> str:
    """The last part of a dotted name; empty for anything that is no name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_plain_record(node: ast.ClassDef, about: _About) -> bool:
    """A dataclass without bases and methods that run when it is made: ``Config()`` only keeps values."""
    names = {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
    marks = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    made = {"__init__", "__new__", "__post_init__", "__setattr__"}
    factories = [
        keyword.value
        for member in node.body
        for call in ast.walk(member)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "default_factory"
    ]
    for factory in factories:
        if isinstance(factory, ast.Lambda):
            if any(_called(factory.body, "", about)):
                return False
        elif not about.may_call(factory):
            return False
    return not node.bases and not node.keywords and [_last(m) for m in marks] == ["dataclass"] and not names & made


def _is_main(test: ast.expr) -> bool:
    """``__name__ == "__main__"``, either way round, and nothing else beside it."""
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)):
        return False
    sides = (test.left, test.comparators[0])
    named = [s for s in sides if isinstance(s, ast.Name) and s.id == "__name__"]
    main = [s for s in sides if isinstance(s, ast.Constant) and s.value == "__main__"]
    return len(named) == len(main) == 1

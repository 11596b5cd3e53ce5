"""A module's forward as text: its statements, the names they read and write, the nodes that __init__ declares."""

from __future__ import annotations

import ast
import inspect
import linecache
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from anyformer.core.errors import CallError

_NODE = re.compile(r"(?P<node>[A-Za-z]\w*?_\d+)(?:_(?P<part>\w+))?")
_COMMENT = re.compile(r"\s*#\s*(?:[\w\- ]+:\s*)?(?P<node>[A-Za-z]\w*?_\d+)\b")
_FORWARD = "forward"


@dataclass(frozen=True)
class ForwardSource:
    """The text of the class whose forward a module runs."""

    path: str
    """File name as tracebacks show it."""
    lines: tuple[str, ...]
    """Of the whole text, each with its line end."""
    owner: ast.ClassDef
    forward: ast.FunctionDef
    init: ast.FunctionDef | None
    """__init__ of the same class."""
    namespace: dict[str, Any]
    """The globals of forward."""

    def where(self, line: int | None) -> str:
        """``model.py:41: text`` for messages; empty where there is no line."""
        if line is None or not 0 < line <= len(self.lines):
            return ""
        return f"{self.path.rpartition('/')[2]}:{line}: {self.lines[line - 1].strip()}"


def node_and_part(name: str) -> tuple[str, str] | None:
    """``("mhsa_0", "output")`` of mhsa_0_output; None for a name that is no node's."""
    match = _NODE.fullmatch(name)
    return (match["node"], match["part"] or "") if match else None


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside a torch.compile'd one."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module


def read_forward(module: nn.Module, source: str | None = None) -> ForwardSource:
    """The source of the module's class. source: the text of its file, where that is at hand.

    Raises CallError where there is no text, or where the text is no longer what was loaded.
    """
    target = unwrapped(module)
    function = inspect.unwrap(type(target).forward)
    name = type(target).__name__
    if not isinstance(function, types.FunctionType) or "forward" in vars(target):
        raise CallError(f"the forward of {name} is no plain method, so its source cannot be read")
    code = function.__code__
    text = source if source is not None else _text_of(code, function.__globals__)
    if text is None:
        raise CallError(
            f"the source of {name} cannot be read, or is no longer what was loaded",
            f"looked for forward at {code.co_filename}:{code.co_firstlineno}",
            "load the model again from its file",
        )
    for owner in ast.walk(ast.parse(text)):
        if not isinstance(owner, ast.ClassDef):
            continue
        for member in owner.body:
            if isinstance(member, ast.FunctionDef) and member.name == _FORWARD:
                first = min([member.lineno, *(d.lineno for d in member.decorator_list)])
                if first == code.co_firstlineno or (source is not None and owner.name == name):
                    init = next(
                        (m for m in owner.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None
                    )
                    lines = tuple(text.splitlines(keepends=True))
                    return ForwardSource(code.co_filename, lines, owner, member, init, function.__globals__)
    raise CallError(f"{code.co_filename} holds no forward of a class {name}")


def _text_of(code: types.CodeType, namespace: dict[str, Any]) -> str | None:
    """The file's text, where compiling it gives this very code: a file edited since would be another model's."""
    for fresh in (False, True):
        if fresh:
            linecache.checkcache(code.co_filename)
        text = "".join(linecache.getlines(code.co_filename, namespace))
        if text and _compiles_to(text, code):
            return text
    return None


def _compiles_to(text: str, code: types.CodeType) -> bool:
    try:
        whole = compile(text, code.co_filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return any(
        c.co_firstlineno == code.co_firstlineno and c.co_code == code.co_code and c.co_names == code.co_names
        for c in _codes(whole)
        if c.co_name == code.co_name
    )


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def declared_nodes(source: ForwardSource, module: nn.Module) -> tuple[str, ...]:
    """Nodes in the order of __init__: of its comments (``# residual: residual_0``) and of what it puts on self."""
    found: list[tuple[int, str]] = [(line, node) for node, line in node_comments(source).items()]
    if source.init is not None:
        named = [(line, node_and_part(name)) for name, line in assigned_attributes(source.init).items()]
        found += [(line, parts[0]) for line, parts in named if parts]
    members = [*unwrapped(module)._modules, *unwrapped(module)._parameters]
    last = [parts[0] for parts in map(node_and_part, members) if parts]
    return tuple(dict.fromkeys([*(node for _, node in sorted(found, key=lambda pair: pair[0])), *last]))


def node_comments(source: ForwardSource) -> dict[str, int]:
    """Nodes that comments in __init__ declare, with the line; those below its last statement are its own, too."""
    found: dict[str, int] = {}
    if source.init is None:
        return found
    last = source.init.end_lineno or source.init.lineno
    for number in range(source.init.lineno, len(source.lines) + 1):
        line = source.lines[number - 1]
        inside = len(line) - len(line.lstrip()) > source.init.col_offset
        if number > last and line.strip() and not (line.lstrip().startswith("#") and inside):
            break
        comment = _COMMENT.match(line)
        if comment:
            found.setdefault(comment["node"], number)
    return found


def commented_in_forward(source: ForwardSource) -> set[str]:
    """Nodes that comments among forward's statements name: a residual has no module and may stand only there."""
    last = source.forward.end_lineno or source.forward.lineno
    comments = [_COMMENT.match(line) for line in source.lines[source.forward.lineno - 1 : last]]
    return {comment["node"] for comment in comments if comment}


def assigned_attributes(init: ast.FunctionDef) -> dict[str, int]:
    """Names put on self in a function, with their lines."""
    found: dict[str, int] = {}
    for statement in ast.walk(init):
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        for target in targets:
            name = self_attribute(target)
            if name is not None:
                found.setdefault(name, target.lineno)
    return found


def self_attribute(node: ast.AST) -> str | None:
    """``mhsa_0`` of ``self.mhsa_0``."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


def dotted(node: ast.AST) -> str:
    """``torch.nn.functional.gelu`` as text; empty for what is no dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def names_of(statement: ast.AST) -> tuple[list[str], list[str]]:
    """Names that a statement reads from outside of itself, and those that it writes; each in order, once."""
    visitor = _Names()
    visitor.visit(statement)
    return list(dict.fromkeys(visitor.reads)), list(dict.fromkeys(visitor.writes))


class _Names(ast.NodeVisitor):
    """Walks in the order of execution; what is written inside before it is read is no read from outside."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.writes: list[str] = []
        self._local: list[set[str]] = []

    def visit_Name(self, node: ast.Name) -> None:
        if any(node.id in names for names in self._local):
            return
        if isinstance(node.ctx, ast.Load):
            if node.id not in self.writes:
                self.reads.append(node.id)
        else:
            self.writes.append(node.id)

    def visit_Assign(self, node: ast.Assign) -> None:
        for part in (node.value, *node.targets):
            self.visit(part)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name) and node.target.id not in self.writes:
            self.reads.append(node.target.id)
        self.visit(node.value)
        self.visit(node.target)

    def visit_For(self, node: ast.For) -> None:
        for part in (node.iter, node.target, *node.body, *node.orelse):
            self.visit(part)

    def _scoped(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        local = {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
        self._local.append(local)
        self.generic_visit(node)
        self._local.pop()

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _scoped  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._local.append({a.arg for a in [*node.args.args, *node.args.kwonlyargs]})
        self.visit(node.body)
        self._local.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.writes.append(node.name)
        inner = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self._local.append({a.arg for a in [*node.args.args, *node.args.kwonlyargs]} | inner)
        for part in node.body:
            self.visit(part)
        self._local.pop()

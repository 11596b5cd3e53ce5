"""What a constructor reads of its arguments, from its syntax: ``config.n_embd``, ``cfg["emb_dim"]``, and their uses."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

from torch import nn

from anyformer.models.files.notebooklines import without_notebook_lines
from anyformer.models.files.syntax import called

Path = tuple[str, ...]
"""A parameter's name, then the attributes or keys read from it: ``("config", "n_embd")``."""
MATRIX = "matrix"
"""The meaning of vectors, one for each token, that were learnt elsewhere."""
_LOOKUPS = ("get", "pop", "setdefault")
_TORCH = {"normalized_shape": "d_model", "in_features": "d_model", "embedding_dim": "d_model", "p": "dropout"}
_OUTPUT = re.compile(
    r"head|logit|vocab|generator|fc_out|decoder$|classif|unembed|to_out|out$|proj_out|output|final", re.I
)
_POSITION = re.compile(r"pos|wpe|seq|time", re.I)
_GRIDS = ("arange", "ones", "zeros", "tril", "triu", "full", "empty")
_MAX_DEPTH = 12


@dataclass
class Reads:
    """What one callable and those that it hands its arguments to read."""

    required: set[Path] = field(default_factory=set)
    """Read without a default."""
    optional: set[Path] = field(default_factory=set)
    """Read with ``getattr(c, "x", d)``, ``c.get("x")`` or ``hasattr``."""
    stored: set[Path] = field(default_factory=set)
    """Set by the constructor itself."""
    styles: dict[Path, set[str]] = field(default_factory=dict)
    """Container → "attribute" and/or "key": how its values are read."""
    names: dict[Path, set[str]] = field(default_factory=dict)
    """Further names under which a value is handed on."""
    meanings: dict[Path, str] = field(default_factory=dict)
    """What a value's use says that it is: ``nn.Dropout(x)`` makes it a dropout rate, ``if x:`` a "flag"."""

    sized: set[Path] = field(default_factory=set)
    """What its length is asked of: ``len(vocab)``."""
    numbers: set[Path] = field(default_factory=set)
    """What is calculated with, or is an argument of one of torch's modules."""
    defaults: dict[Path, Any] = field(default_factory=dict)
    """The number, text or truth value that a parameter has of itself to which a value is handed on."""

    words: dict[Path, str] = field(default_factory=dict)
    """The first word that a value is compared with: a choice of words."""

    def under(self, container: Path) -> list[str]:
        """Names read directly of a container without a default, in order of the alphabet."""
        size = len(container)
        found = {p[size] for p in self.required if len(p) > size and p[:size] == container}
        return sorted(found - {p[size] for p in self.stored if len(p) == size + 1 and p[:size] == container})

    def maybe_under(self, container: Path) -> list[str]:
        """Names that are read of a container where it has them."""
        size = len(container)
        return sorted({p[size] for p in self.optional if len(p) == size + 1 and p[:size] == container})


def reads_of(target: Callable[..., Any]) -> Reads:
    """Read the syntax of a class's constructor and methods, or of a function; nothing is run."""
    scanner = _Scanner()
    scanner.scan(target, {p: (p,) for p in _parameter_names(target)}, 0)
    return scanner.reads


@functools.lru_cache(maxsize=64)
def _functions(path: str, stamp: tuple[int, int]) -> dict[tuple[int, str], ast.FunctionDef]:
    try:
        tree = ast.parse(without_notebook_lines(File(path).read_text(encoding="utf-8-sig"))[0])
    except (OSError, SyntaxError, ValueError):
        return {}
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    return {(min([n.lineno, *(d.lineno for d in n.decorator_list)]), n.name): n for n in found}


def function_node(function: Any) -> ast.FunctionDef | None:
    """The syntax of a function of a file; None for built-in and generated ones."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return None
    try:
        info = File(code.co_filename).stat()
    except OSError:
        return None
    known = _functions(code.co_filename, (info.st_mtime_ns, info.st_size))
    return known.get((code.co_firstlineno, code.co_name))


def _is_users(target: Any) -> bool:
    module = getattr(target, "__module__", None) or ""
    return module.partition(".")[0] not in ("torch", "builtins", "transformers", "numpy", "math")


def _parameter_names(target: Any) -> list[str]:
    try:
        return list(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return []


def methods(cls: type) -> Iterator[tuple[type, str, Any]]:
    """The user's own functions of a class and of its bases: the class that defines it, its name, the function."""
    for owner in cls.__mro__:
        if owner is not object and _is_users(owner):
            for name, value in vars(owner).items():
                function = getattr(value, "__func__", value)
                if isinstance(function, types.FunctionType):
                    yield owner, name, function


class _Scanner:
    def __init__(self) -> None:
        self.reads = Reads()
        self._seen: set[tuple[int, bool, frozenset[tuple[str, Path]]]] = set()
        self.guarded = False
        """Inside ``if "x" in config:``: what is read there is not required."""

    def scan(self, target: Any, bound: Mapping[str, Path], depth: int) -> None:
        key = (id(target), self.guarded, frozenset(bound.items()))
        if key in self._seen or depth > _MAX_DEPTH or not bound:
            return
        self._seen.add(key)
        if not inspect.isclass(target):
            node = function_node(target)
            if node is not None:
                _Body(self, target, None, dict(bound), {}, depth).read(node)
            return
        held: dict[str, Path] = {}
        found = list(methods(target))
        first = next(((o, f) for o, n, f in found if n == "__init__"), None)
        if first is not None and (node := function_node(first[1])) is not None:
            _Body(self, first[1], first[0], dict(bound), held, depth, target).read(node)
        for owner, name, function in found:
            if name != "__init__" and held and (node := function_node(function)) is not None:
                _Body(self, function, owner, {}, held, depth, target).read(node)


class _Body(ast.NodeVisitor):
    """One function's body: which expressions are values that the constructor was given."""

    def __init__(
        self,
        scanner: _Scanner,
        function: Any,
        owner: type | None,
        bound: dict[str, Path],
        held: dict[str, Path],
        depth: int,
        cls: type | None = None,
    ) -> None:
        self._scanner, self._reads = scanner, scanner.reads
        self._globals: dict[str, Any] = getattr(inspect.unwrap(function), "__globals__", {})
        self._owner, self._bound, self._held, self._depth, self._cls = owner, bound, held, depth, cls
        self._target = ""
        self._inner: set[int] = set()
        """id() of each call of Linear behind which another stands in its Sequential."""

    def read(self, node: ast.FunctionDef) -> None:
        for _ in range(2):  # a chain of two: c = config, self.c = c
            for part in ast.walk(node):
                if isinstance(part, ast.Assign) and (path := self._path(part.value)) is not None:
                    self._remember(part.targets, path)
        for statement in node.body:
            self.visit(statement)

    def _remember(self, targets: list[ast.expr], path: Path) -> None:
        for target in targets:
            if isinstance(target, ast.Name):
                self._bound.setdefault(target.id, path)
            elif isinstance(target, ast.Attribute) and _is_self(target.value):
                self._held.setdefault(target.attr, path)

    def _path(self, node: ast.AST) -> Path | None:
        if isinstance(node, ast.Name):
            return self._bound.get(node.id)
        if isinstance(node, ast.Attribute):
            if _is_self(node.value):
                return self._held.get(node.attr)
            base = self._path(node.value)
            return None if base is None or node.attr.startswith("__") else (*base, node.attr)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            base = self._path(node.value)
            return (*base, node.slice.value) if base is not None and isinstance(node.slice.value, str) else None
        return None

    def visit_Assign(self, node: ast.Assign) -> None:
        before, target, value = self._target, node.targets[0], node.value
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            pairs = list(zip(target.elts, value.elts, strict=True))
        for to, made in pairs:
            self._target = to.attr if isinstance(to, ast.Attribute) else getattr(to, "id", "")
            self.visit(made)
        self._target = before
        for to in node.targets:
            self.visit(to)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._read(node, "attribute")
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self._read(node, "key")
        self.generic_visit(node)

    def _read(self, node: ast.Attribute | ast.Subscript, style: str) -> None:
        path = self._path(node)
        if path is None or len(path) < 2 or _is_self(node.value):
            return
        self._reads.styles.setdefault(path[:-1], set()).add(style)
        read = self._reads.optional if self._scanner.guarded else self._reads.required
        (read if isinstance(node.ctx, ast.Load) else self._reads.stored).add(path)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        sides = (node.left, node.right)
        if not any(isinstance(s, ast.Constant | ast.List) and not _is_number(s) for s in sides):
            self._reads.numbers.update(path for s in sides if (path := self._path(s)) is not None)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        parts = [e for s in sides for e in (s.elts if isinstance(s, ast.Tuple | ast.List | ast.Set) else [s])]
        words = [e.value for e in parts if isinstance(e, ast.Constant) and isinstance(e.value, str)]
        for path in (p for s in sides if words and (p := self._path(s)) is not None):
            self._reads.words.setdefault(path, words[0])
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        self._switch(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._switch(node)

    def _switch(self, node: ast.If | ast.IfExp) -> None:
        parts = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]
        for part in parts:
            inner = part.operand if isinstance(part, ast.UnaryOp) else part
            if (path := self._path(inner)) is not None:
                self._reads.meanings.setdefault(path, "flag")
        before = self._scanner.guarded
        self._scanner.guarded = before or self._asks_whether_there(node.test)
        self.visit(node.test)
        for child in node.body if isinstance(node, ast.If) else [node.body]:
            self.visit(child)
        self._scanner.guarded = before
        for child in node.orelse if isinstance(node, ast.If) else [node.orelse]:
            self.visit(child)

    def _asks_whether_there(self, test: ast.expr) -> bool:
        """``"x" in config`` in a condition; x is noted as optional."""
        found = False
        parts = test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]
        for part in parts:
            if isinstance(part, ast.Compare) and len(part.ops) == 1 and isinstance(part.ops[0], ast.In):
                base = self._path(part.comparators[0])
                if base is not None and isinstance(part.left, ast.Constant) and isinstance(part.left.value, str):
                    self._look_up(base, part.left.value, "key", False)
                    found = True
        return found

    def visit_Call(self, node: ast.Call) -> None:
        name = called(node)
        if name in ("getattr", "hasattr") and len(node.args) >= 2 and isinstance(node.args[1], ast.Constant):
            base, certain = self._path(node.args[0]), name == "getattr" and len(node.args) == 2
            self._look_up(base, str(node.args[1].value), "attribute", certain)
        elif isinstance(node.func, ast.Attribute) and (base := self._path(node.func.value)) is not None:
            if name in _LOOKUPS and node.args and isinstance(node.args[0], ast.Constant):
                self._look_up(base, str(node.args[0].value), "key", name == "pop" and len(node.args) == 1)
            # a method of the configuration itself is no value of it
            for part in (*node.args, *(k.value for k in node.keywords)):
                self.visit(part)
            return
        if name == "from_pretrained" and getattr(node.func, "value", None) is not None:
            for vectors in node.args[:1] or [k.value for k in node.keywords if k.arg == "embeddings"]:
                self._matrix(node.func, vectors)
        if name == "len" and len(node.args) == 1 and (path := self._path(node.args[0])) is not None:
            self._reads.sized.add(path)
        if name == "Sequential":
            layers = [a for a in node.args if isinstance(a, ast.Call) and called(a) == "Linear"]
            self._inner |= {id(layer) for layer in layers[:-1]}
        self._hand_on(node, name)
        self.generic_visit(node)

    def _matrix(self, function: ast.expr, given: ast.expr) -> None:
        """``nn.Embedding.from_pretrained(vectors)``, also of ``torch.FloatTensor(vectors)``."""
        owner = function.value if isinstance(function, ast.Attribute) else None
        if getattr(owner, "attr", getattr(owner, "id", "")) != "Embedding":
            return
        if isinstance(given, ast.Call) and len(given.args) == 1:
            given = given.args[0]
        if (path := self._path(given)) is not None:
            self._reads.meanings[path] = MATRIX

    def _look_up(self, base: Path | None, name: str, style: str, certain: bool) -> None:
        if base is not None:
            self._reads.styles.setdefault(base, set()).add(style)
            (self._reads.required if certain else self._reads.optional).add((*base, name))

    def _hand_on(self, node: ast.Call, name: str) -> None:
        callee = self._callee(node.func)
        names = _parameter_names(callee) if callee is not None else []
        if isinstance(callee, types.FunctionType) and name == "__init__":
            names = names[1:]
        passed: dict[str, Path] = {}
        for index, argument in enumerate(node.args):
            if (path := self._path(argument)) is not None:
                if index < len(names):
                    passed[names[index]] = path
                self._grid(name, index, path)
        passed |= {k.arg: path for k in node.keywords if k.arg and (path := self._path(k.value)) is not None}
        for keyword in node.keywords:  # Layer(**kwargs)
            if keyword.arg is None and (path := self._path(keyword.value)) is not None and callee is not None:
                passed |= self._opened(callee, path, passed, len(node.args))
        if inspect.isclass(callee) and issubclass(callee, nn.Module) and not _is_users(callee):
            self._reads.numbers.update(passed.values())
        for parameter, path in passed.items():
            default = inspect.signature(callee).parameters[parameter].default if parameter in names else None
            if isinstance(default, bool | int | float | str):
                self._reads.defaults.setdefault(path, default)
            meaning = self._meaning(name, parameter, inner=id(node) in self._inner)
            if meaning is not None:
                self._reads.meanings.setdefault(path, meaning)
            else:
                self._reads.names.setdefault(path, set()).add(parameter)
        if callee is not None and _is_users(callee) and passed:
            if isinstance(callee, types.FunctionType) and name == "__init__":
                callee = self._next_class()
            self._scanner.scan(callee, passed, self._depth + 1)

    def _opened(self, callee: Any, whole: Path, passed: Mapping[str, Path], positional: int) -> dict[str, Path]:
        """What ``**whole`` gives to the parameters of a callee: each its own value, the rest to its own keywords."""
        if not _is_users(callee):
            return {}
        found: dict[str, Path] = {}
        for index, p in enumerate(inspect.signature(callee).parameters.values()):
            if p.kind is inspect.Parameter.VAR_KEYWORD:
                found[p.name] = whole
            elif p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in passed and index >= positional:
                found[p.name] = (*whole, p.name)
                self._reads.styles.setdefault(whole, set()).add("key")
                (self._reads.required if p.default is p.empty else self._reads.optional).add(found[p.name])
        return found

    def _grid(self, name: str, index: int, path: Path) -> None:
        if name == "range":
            self._reads.meanings.setdefault(path, "n_layers")
        elif name in _GRIDS and index < 2:
            self._reads.meanings.setdefault(path, "max_len")

    def _meaning(self, callee: str, parameter: str, *, inner: bool) -> str | None:
        """inner: another Linear of the same Sequential follows."""
        if callee == "Embedding" and parameter == "num_embeddings":
            return "max_len" if _POSITION.search(self._target) else "vocab_size"
        if callee == "Linear" and parameter == "out_features":
            return "vocab_size" if _OUTPUT.search(self._target) and not inner else "d_model"
        if parameter == "p" and "Dropout" not in callee:
            return None
        return _TORCH.get(parameter)

    def _callee(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self._globals.get(node.id, vars(builtins).get(node.id))
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super":
                following = self._next_class()
                return getattr(following, node.attr, None) if following is not None else None
            if _is_self(node.value):
                return None
            base = self._callee(node.value)
            return getattr(base, node.attr, None) if isinstance(base, types.ModuleType) else None
        return None

    def _next_class(self) -> type | None:
        """The class that ``super()`` reaches."""
        if self._cls is None or self._owner not in self._cls.__mro__:
            return None
        order = self._cls.__mro__
        following = order[order.index(self._owner) + 1 :]
        return next((c for c in following if _is_users(c) and c is not nn.Module and "__init__" in vars(c)), None)


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"

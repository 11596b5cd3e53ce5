"""Values that a user's own file gives: globals, sizes in main(), defaults of flags, the calls that build the model."""

from __future__ import annotations

import argparse
import ast
import builtins
import contextlib
import copy
import dataclasses
import inspect
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from anyformer.models.building.flags import flag_defaults, flags_beside
from anyformer.models.files.constants import TooBig, folded
from anyformer.models.files.definitions import is_main
from anyformer.models.files.loops import COUNTING, filled_by
from anyformer.models.files.records import Records

_SAFE = (
    *(int, float, str, bool, len, max, min, abs, round, sum, dict, list, tuple, set, range, sorted, pow, getattr),
    *(types.SimpleNamespace, argparse.Namespace, torch.device, torch.cuda.is_available, copy.deepcopy, copy.copy),
)
_SIMPLE = (int, float, str, bool, type(None), torch.device, torch.dtype)
_ALLOWED = (
    *(ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare),
    *(ast.IfExp, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.Call, ast.keyword, ast.expr_context, ast.operator),
    *(ast.unaryop, ast.boolop, ast.cmpop, ast.Starred, ast.JoinedStr, ast.FormattedValue, ast.Slice),
)
_TAIL = ("to", "cuda", "cpu", "half", "float", "double", "bfloat16", "train", "eval", "requires_grad_")
"""Methods of a module that return it."""


class Unknown(Exception):
    """An expression whose value is not known without running the program."""


@dataclass(frozen=True)
class CallSite:
    """A call in the user's file that builds a model."""

    target: Any
    node: ast.Call
    scope: Mapping[str, Any]
    """Local names and their values where the call stands; other CallSites among them."""
    rank: int
    """0 module level and ``__main__``, 1 main() and train(), 2 other functions, 3 methods of classes."""


@dataclass(frozen=True)
class Partly:
    """A dict or record that the file makes with values of which some are unknown: a tokenizer's vocabulary, mostly.

    It is never made as it stands: what the file works out of it is unknown, but for the values that are known.
    """

    record_class: Any
    known_values: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        if self.record_class is not dict and name in self.known_values:
            return self.known_values[name]
        raise AttributeError(name)

    def __getitem__(self, name: str) -> Any:
        if self.record_class is not dict:
            raise TypeError(name)
        return self.known_values[name]


class Written:
    """The values in one file's text. Expressions are evaluated only where that runs none of the file's work."""

    def __init__(self, text: str, module: types.ModuleType) -> None:
        self._module = module
        self._tree = ast.parse(text)
        self._records = Records(self._tree, module, self._is_harmless)
        self._flags = flag_defaults(self._tree)
        self._parsers = {
            n.name for n in self._tree.body if isinstance(n, ast.FunctionDef) and "parse_args" in ast.unparse(n)
        }
        self._under_main = False
        self._unfilled: set[str] = set()
        """Lists and tables that a statement would put something into, which is not run here."""
        self.drawn: set[int] = set()
        """Below what random ids are drawn: a vocabulary of that size is a trial run's, if it is too small for text."""
        self.calls: list[CallSite] = []
        self.scopes: list[tuple[int, dict[str, Any]]] = []
        """Names with their values: of the module level and ``__main__`` first, of functions then."""
        self._collect()

    def names(self) -> dict[str, Any]:
        """Simple values by name: module level, ``__main__``, functions, then flags' defaults."""
        found = {n: v for n, v in vars(self._module).items() if isinstance(v, _SIMPLE) and not n.startswith("__")}
        for rank, scope in self.scopes:
            for name, value in scope.items() if rank <= 1 else ():
                if isinstance(value, _SIMPLE):
                    found.setdefault(name, value)
        return {**self._flags, **found}

    def flags_beside(self) -> dict[str, dict[str, Any]]:
        """File → the defaults of its flags, for the programs beside this one."""
        return flags_beside(self._module)

    def configurations(self) -> dict[str, Any]:
        """Dicts with text keys and configuration objects by name: of the module, then of main() and functions."""
        own = {n: v for n, v in vars(self._module).items() if not n.startswith("__")}
        found: dict[str, Any] = {}
        for scope in (own, *(s for _, s in self.scopes)):
            for name, value in scope.items():
                if _is_configuration(value, self._module):
                    found.setdefault(name, value)
                if isinstance(value, dict):  # {"gpt2-small": {...}, …}
                    for key, inner in value.items():
                        if _is_configuration(inner, self._module):
                            found.setdefault(f"{name}[{key!r}]", inner)
        if self._flags:
            found.setdefault("the flags' defaults", argparse.Namespace(**self._flags))
        return found

    def sites(self, target: Any) -> list[CallSite]:
        """The calls of a class or function, those that run first when the file is a program first."""
        return sorted((c for c in self.calls if c.target is target), key=lambda c: c.rank)

    def evaluate(self, node: ast.expr, scope: Mapping[str, Any]) -> Any:
        """The value of a plain expression, a CallSite for a call that builds a module; Unknown otherwise."""
        node = without_tail(node)
        if isinstance(node, ast.Name) and node.id in scope:
            return scope[node.id]
        if isinstance(node, ast.Call):
            target = self.resolve(node.func, scope)
            if _builds_module(target, self._module):
                return CallSite(target, node, dict(scope), 9)
            if self._parses_flags(node, target):
                return argparse.Namespace(**self._flags)
        if self._is_plain(node, scope):
            code = compile(ast.Expression(node), "<expression>", "eval")
            # what the user's program would raise there, a name that is not known for one: the value stays unknown
            with contextlib.suppress(Exception):
                return eval(code, {**vars(self._module), **scope})
        return self._partly(node, scope)

    def _partly(self, node: ast.expr, scope: Mapping[str, Any]) -> Partly:
        """A dict or a record of which some values are known; Unknown is raised for everything else."""
        given: list[tuple[Any, ast.expr]] = []
        target: Any = dict
        if isinstance(node, ast.Dict):
            given = [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values, strict=True)]
        elif isinstance(node, ast.Call) and not node.args:
            target = self.resolve(node.func, scope)
            given = [(keyword.arg, keyword.value) for keyword in node.keywords]
        record = inspect.isclass(target) and (target is dict or self._records.is_plain(target))
        if not record or not all(isinstance(name, str) for name, _ in given):
            raise Unknown
        known: dict[str, Any] = {}
        for name, value in given:
            with contextlib.suppress(Unknown):
                known[name] = self.evaluate(value, scope)
        known = {name: value for name, value in known.items() if not isinstance(value, CallSite | Partly)}
        if not known:
            raise Unknown
        return Partly(target, known)

    def resolve(self, node: ast.expr, scope: Mapping[str, Any]) -> Any:
        """The object that a dotted name stands for, or None."""
        if isinstance(node, ast.Name):
            return scope.get(node.id, vars(self._module).get(node.id, vars(builtins).get(node.id)))
        if isinstance(node, ast.Attribute):
            base = self.resolve(node.value, scope)
            return None if base is None or isinstance(base, CallSite) else getattr(base, node.attr, None)
        return None

    def _parses_flags(self, node: ast.Call, target: Any) -> bool:
        named = getattr(node.func, "attr", "") in ("parse_args", "parse_known_args")
        return bool(self._flags) and (named or getattr(target, "__name__", None) in self._parsers)

    def _is_plain(self, node: ast.AST, scope: Mapping[str, Any]) -> bool:
        for part in ast.walk(node):
            if not isinstance(part, _ALLOWED):
                return False
            if isinstance(part, ast.Name) and isinstance(scope.get(part.id), CallSite):
                return False
            if isinstance(part, ast.BinOp) and not self._stays_small(part, scope):
                return False
            if isinstance(part, ast.Call) and not self._is_harmless(self.resolve(part.func, scope)):
                return False
            if isinstance(part, ast.Call) and self._counts_unfilled(part):
                return False
        return True

    def _counts_unfilled(self, call: ast.Call) -> bool:
        if not (isinstance(call.func, ast.Name) and call.func.id in COUNTING):
            return False
        return any(isinstance(n, ast.Name) and n.id in self._unfilled for arg in call.args for n in ast.walk(arg))

    def _is_harmless(self, target: Any) -> bool:
        if target in _SAFE or getattr(target, "__module__", None) == "math" or target in vars(math).values():
            return True
        if inspect.isclass(target) and issubclass(target, nn.Module):
            return target.__module__.startswith("torch.nn.modules.activation")
        named = getattr(target, "__name__", "") in ("get_default_config", "get_config", "default_config")
        return (named or inspect.isclass(target)) and self._records.is_plain(target)

    def _stays_small(self, node: ast.BinOp, scope: Mapping[str, Any]) -> bool:
        """Whether arithmetic ends: 9**9**9 does not, and what cannot be estimated is not raised to a power."""
        try:
            value = folded(node, {**vars(self._module), **scope})
        except TooBig:
            return False
        return value is not None or not isinstance(node.op, ast.Pow | ast.LShift)

    def _collect(self) -> None:
        top: dict[str, Any] = {}
        self._block(self._tree.body, top, 0)
        self.scopes.append((0, top))
        for node, rank in _bodies(self._tree):
            scope = self._parameters(node, top)
            self._block(node.body, scope, rank)
            self.scopes.append((rank, {k: v for k, v in scope.items() if k not in top or v is not top[k]}))
        self.scopes.sort(key=lambda pair: pair[0])

    def _parameters(self, node: ast.FunctionDef, top: Mapping[str, Any]) -> dict[str, Any]:
        scope = dict(top)
        positional = [*node.args.posonlyargs, *node.args.args]
        for parameter in (*positional, *node.args.kwonlyargs):
            scope.pop(parameter.arg, None)
        pairs = [*zip(positional[len(positional) - len(node.args.defaults) :], node.args.defaults, strict=True)]
        pairs += [(p, d) for p, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d is not None]
        for parameter, value in pairs:
            self._assign(scope, parameter.arg, value)
        return scope

    def _assign(self, scope: dict[str, Any], name: str, value: ast.expr) -> None:
        try:
            scope[name] = self.evaluate(value, scope)
        except Unknown:
            scope.pop(name, None)

    def _note_drawn(self, call: ast.Call, scope: Mapping[str, Any]) -> None:
        """The bound of torch.randint(high, size) or torch.randint(low, high, size)."""
        if getattr(call.func, "attr", getattr(call.func, "id", "")) != "randint":
            return
        given = [k.value for k in call.keywords if k.arg == "high"] + call.args[1::-1]
        for node in given:
            with contextlib.suppress(Unknown):
                value = self.evaluate(node, scope)
                if type(value) is int:
                    self.drawn.add(value)
                    return

    def _block(self, statements: list[ast.stmt], scope: dict[str, Any], rank: int) -> None:
        for statement in statements:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                continue
            for call in _own_calls(statement):
                target = self.resolve(call.func, scope)
                if _builds_module(target, self._module):
                    self.calls.append(CallSite(target, call, dict(scope), rank))
                self._note_drawn(call, scope)
            if not hasattr(statement, "body"):
                self._note_filling(statement, scope, rank == 0 and not self._under_main)
            if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
                before = ast.Name(statement.target.id, ast.Load())
                after = ast.copy_location(ast.BinOp(before, statement.op, statement.value), statement)
                self._assign(scope, before.id, ast.fix_missing_locations(after))
            if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                for target in targets:
                    self._bind(target, statement.value, scope)
            under_main, self._under_main = self._under_main, self._under_main or is_main(statement)
            for name in ("body", "orelse", "finalbody"):
                self._block(getattr(statement, name, []), scope, rank)
            self._under_main = under_main
            for name in _grown_in(statement):
                scope.pop(name, None)

    def _note_filling(self, statement: ast.stmt, scope: dict[str, Any], loaded: bool) -> None:
        """From here on what a statement fills is what loading the file has made of it, or has no known length.

        loaded: whether loading the file runs the statement.
        """
        for name in filled_by(statement):
            made, held = vars(self._module).get(name), scope.get(name)
            if loaded and isinstance(made, list | dict | set) and (held is None or len(made) > len(held)):
                scope[name] = made
            elif held is None or held is not made:
                self._unfilled.add(name)

    def _bind(self, target: ast.expr, value: ast.expr, scope: dict[str, Any]) -> None:
        if isinstance(target, ast.Name):
            self._assign(scope, target.id, value)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, each in zip(target.elts, value.elts, strict=True):
                self._bind(one, each, scope)
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
            holder = scope.get(target.value.id)  # config.vocab_size = 50257, on the object of this very scope
            if _is_configuration(holder, self._module):
                try:
                    setattr(holder, target.attr, self.evaluate(value, scope))
                except (Unknown, AttributeError, TypeError):  # an unknown value, a frozen object: it keeps its own
                    return


def _own_calls(statement: ast.stmt) -> Iterator[ast.Call]:
    """Calls of a statement itself, without those of the statements inside it."""
    for child in ast.iter_child_nodes(statement):
        if not isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from (n for n in ast.walk(child) if isinstance(n, ast.Call))


def _grown_in(statement: ast.stmt) -> set[str]:
    """Names that a loop changes in each turn: how many there are is not known."""
    if not isinstance(statement, ast.For | ast.While):
        return set()
    changes = [n.target for n in ast.walk(statement) if isinstance(n, ast.AugAssign)]
    return {target.id for target in changes if isinstance(target, ast.Name)}


def _bodies(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, int]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node, 1 if node.name in ("main", "train", "run", "demo", "test", "example") else 2
        elif isinstance(node, ast.ClassDef):
            # from_pretrained() and such build other sizes than those that are trained
            yield from ((n, 3) for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("from_"))


def without_tail(node: ast.expr) -> ast.expr:
    """``GPT(config).to(device)`` → ``GPT(config)``."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _TAIL:
        node = node.func.value
    return node


def _builds_module(target: Any, module: types.ModuleType) -> bool:
    if inspect.isclass(target):
        return issubclass(target, nn.Module) and not target.__module__.startswith("torch.")
    own = isinstance(target, types.FunctionType) and target.__module__ == module.__name__
    prefixes = ("make_", "build_", "create_", "get_model", "init_model", "load_model")
    return own and (target.__name__.startswith(prefixes) or target.__name__[:1].isupper())


def _is_configuration(value: Any, module: types.ModuleType) -> bool:
    if isinstance(value, Partly):
        return False
    if isinstance(value, dict):
        return bool(value) and all(isinstance(k, str) for k in value)
    if isinstance(value, types.SimpleNamespace | argparse.Namespace):
        return True
    cls = type(value)
    own = cls.__module__ == module.__name__ or dataclasses.is_dataclass(cls)
    return (
        own
        and not isinstance(value, nn.Module)
        and not inspect.isclass(value)
        and (hasattr(value, "__dict__") or hasattr(value, "_asdict"))
        and (not callable(value) or dataclasses.is_dataclass(cls))
    )

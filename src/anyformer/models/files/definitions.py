"""Scripts that do work when they are run: their definitions without the work."""

from __future__ import annotations
import __future__

import argparse
import ast
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from anyformer.core.errors import AnyformerError
from anyformer.models.files.limits import IMPORT_SECONDS, OutOfTime, time_limit
from anyformer.models.files.loops import counted_in, filled_by, fills_only, set_in
from anyformer.models.files.syntax import bound_names, called

_WORK_METHODS = frozenset(
    (
        *("backward", "step", "zero_grad", "fit", "parse_args", "parse_known_args", "cuda", "init_process_group"),
        *("urlretrieve", "urlopen", "load_dataset", "system", "check_call", "check_output", "Popen", "show", "savefig"),
        *("download", "snapshot_download", "sleep", "launch", "serve", "manual_backward", "load_state_dict"),
    )
)
_LOADERS = ("from_pretrained", "snapshot_download", "hf_hub_download", "load_state_dict_from_url")
"""They fetch weights from a network; in a model's constructor they are the model's own business."""
_WORK_NAMES = frozenset(("input", "tqdm", "trange", "load_dataset", "urlretrieve", "urlopen", "exec"))
_WORK_MODULES = frozenset(("requests", "wandb", "subprocess", "urllib", "gradio", "streamlit", "dist", "wget", "st"))
_PURE_BUILTINS = frozenset(
    (
        *("len", "int", "float", "str", "bool", "max", "min", "abs", "round", "sum", "dict", "list", "tuple", "set"),
        *(
            "range",
            "sorted",
            "enumerate",
            "zip",
            "frozenset",
            "pow",
            "getattr",
            "hasattr",
            "type",
            "chr",
            "ord",
            "divmod",
        ),
    )
)
_PURE_MODULES = ("math", "os.path", "posixpath", "collections", "functools", "itertools", "typing", "string", "logging")
_PURE_PACKAGES = ("re", "operator", "copy")
NO_MODEL = "defines no torch.nn.Module"
_MAX_SHOWN = 8


@dataclass
class LeftOut:
    """What of a script was not run."""

    lines: list[str] = field(default_factory=list)
    """"12" or "12-40", in order."""
    packages: list[str] = field(default_factory=list)
    """Packages that are not installed."""
    names: dict[str, str] = field(default_factory=dict)
    """Names that are undefined for it → why."""
    filled: dict[str, Any] = field(default_factory=dict)
    """Sizes that were given a value in place of the statement."""
    places: dict[str, int] = field(default_factory=dict)
    """Names that are undefined for it → the line that would set them."""
    stale: set[str] = field(default_factory=set)
    """Names whose value a loop that was not run would change."""
    unfilled: dict[str, int] = field(default_factory=dict)
    """Lists and tables that a statement which was not run would put something into → its line."""
    failures: dict[str, BaseException] = field(default_factory=dict)
    """Names that are undefined because their statement failed → the error."""


def starts_work(tree: ast.Module) -> str:
    """The line at module level that trains, downloads, asks or never ends, and why; empty where there is none."""
    working = _working_functions(tree)
    for node in tree.body:
        why = work(node, working)
        if why:
            return f"line {node.lineno} {why}"
    return ""


def _working_functions(tree: ast.Module) -> set[str]:
    """Functions of the file that train, download or read the command line when they are called."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = {
        f.name
        for f in functions
        if f in tree.body
        and any(
            isinstance(n, ast.Call) and called(n) in _WORK_METHODS - {"step", "load_state_dict"} for n in ast.walk(f)
        )
    }
    grown = True
    while grown:
        more = {
            f.name
            for f in functions
            if f in tree.body and any(isinstance(n, ast.Call) and called(n) in found for n in ast.walk(f))
        }
        grown = not more <= found
        found |= more
    return found


def work(node: ast.stmt, working: Iterable[str] = ()) -> str:
    """What a statement does beyond defining: it trains, downloads, asks, never ends; empty where nothing."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom):
        return ""
    if isinstance(node, ast.If) and is_main(node):
        return ""
    for part in _now(node):
        if isinstance(part, ast.While) and _is_endless(part):
            return "never ends"
        if isinstance(part, ast.Call) and (why := _call_work(part, working)):
            return why
    return ""


def _is_endless(loop: ast.While) -> bool:
    constant = isinstance(loop.test, ast.Constant) and bool(loop.test.value)
    return constant and not any(isinstance(n, ast.Break | ast.Return | ast.Raise) for n in ast.walk(loop))


def _call_work(call: ast.Call, working: Iterable[str]) -> str:
    name = called(call)
    dotted = ast.unparse(call.func)
    first = dotted.partition(".")[0]
    if name in ("backward", "fit", "step") and isinstance(call.func, ast.Attribute):
        return f"trains ({dotted})"
    if name in ("parse_args", "parse_known_args") and isinstance(call.func, ast.Attribute):
        return f"reads the command line ({dotted})"
    if name in _LOADERS or dotted == "torch.hub.load":
        return f"loads from a hub ({dotted})"
    if name in working and isinstance(call.func, ast.Name):
        return f"starts work ({name}())"
    method = isinstance(call.func, ast.Attribute) and name in _WORK_METHODS - {"cuda"}
    if method or name in _WORK_NAMES or (first in _WORK_MODULES and dotted != first):
        return f"starts work ({dotted})"
    if name in ("train", "main") and isinstance(call.func, ast.Name):
        return f"starts work ({name}())"
    absent = not torch.cuda.is_available()
    moves = name == "cuda" or (
        name == "to" and any(isinstance(a, ast.Constant) and str(a.value).startswith("cuda") for a in call.args)
    )
    return f"needs a GPU ({dotted})" if moves and absent else ""


def _now(node: ast.AST) -> Iterable[ast.AST]:
    """The parts of a statement that run when it runs: not the bodies of functions and lambdas in it."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield from _now(child)


def is_main(node: ast.stmt) -> bool:
    """Whether it is ``if __name__ == "__main__":``."""
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


class Definitions:
    """Runs the definitions of a script in order: imports, classes, functions, constants and plain expressions."""

    def __init__(self, module: types.ModuleType, filename: str, size: Callable[[str, Mapping[str, Any]], Any]) -> None:
        """size: the value for a name whose statement is left out, None where it is no size."""
        self._module, self._filename, self._size = module, filename, size
        self._space: dict[str, Any] = module.__dict__
        self.left = LeftOut()
        self._read: set[str] = set()
        """Names that the file's own assignments read: ``vocab_size = len(chars)``."""
        self._inner: set[str] = set()
        """Names that the loop which is looked at sets."""

    def run(self, statements: list[ast.stmt]) -> LeftOut:
        """Run them; what is left out, and what failed, is returned."""
        values = [n.value for n in statements if isinstance(n, ast.Assign | ast.AnnAssign) and n.value is not None]
        self._read = {n.id for value in values for n in ast.walk(value) if isinstance(n, ast.Name)}
        for node in statements:
            self._statement(node)
        return self.left

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            return
        if is_main(node):
            return
        definition = isinstance(
            node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef
        )
        if short := counted_in(node) & self.left.unfilled.keys():
            name = min(short)
            self._skip(node, f"it counts {name}, which line {self.left.unfilled[name]} would fill")
        elif definition or self._is_plain(node):
            self._execute(node)
        elif isinstance(node, ast.If) and self._is_pure(node.test):
            self._branch(node)
        else:
            self._skip(node, work(node) or "it is no definition")

    def _branch(self, node: ast.If) -> None:
        code = compile(ast.Expression(node.test), self._filename, "eval", dont_inherit=True)
        try:
            chosen = node.body if eval(code, self._space) else node.orelse
        except Exception as error:  # noqa: BLE001  (the user's expression may raise anything)
            self._skip(node, f"its condition failed: {error}", error)
            return
        for inner in chosen:
            self._statement(inner)

    def _execute(self, node: ast.stmt) -> None:
        tree = ast.Module([node], [])
        try:
            with time_limit(IMPORT_SECONDS):
                try:
                    exec(compile(tree, self._filename, "exec", dont_inherit=True), self._space)
                except NameError as error:
                    if error.name not in self.left.names or not isinstance(node, ast.FunctionDef | ast.ClassDef):
                        raise
                    # it may be an annotation alone that names what was left out
                    flags = __future__.annotations.compiler_flag
                    exec(compile(tree, self._filename, "exec", flags, dont_inherit=True), self._space)
        except AnyformerError:
            raise
        except (Exception, SystemExit, OutOfTime) as error:  # noqa: BLE001  (the user's code may raise anything)
            self._skip(node, f"{type(error).__name__}: {error}", error)

    def _skip(self, node: ast.stmt, why: str, error: BaseException | None = None) -> None:
        if isinstance(error, ModuleNotFoundError) and isinstance(node, ast.Import | ast.ImportFrom | ast.Try):
            self.left.packages.append((error.name or str(error)).partition(".")[0])
        else:
            end = node.end_lineno or node.lineno
            self.left.lines.append(str(node.lineno) if end == node.lineno else f"{node.lineno}-{end}")
        for name in filled_by(node):
            if isinstance(self._space.get(name), list | dict | set):
                self.left.unfilled.setdefault(name, node.lineno)
        for name in bound_names(node):
            if name in self._read and _is_placeholder(self._space.get(name)):
                del self._space[name]  # what would have been put in its place is not known
            if name in self._space and isinstance(node, ast.For | ast.While):
                self.left.stale.add(name)
            if name not in self._space:
                value = self._size(name, self._space)
                if value is not None:
                    self._space[name] = value
                    self.left.filled[name] = value
                    continue
                self.left.names[name] = why
                self.left.places[name] = node.lineno
                if error is not None:
                    self.left.failures[name] = error

    def _is_plain(self, node: ast.stmt) -> bool:
        """Constants, plain expressions of known names, and try/with-less blocks of imports and such."""
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            return node.value is None or self._is_pure(node.value)
        if isinstance(node, ast.For):
            self._inner = set_in(node)
            plain = fills_only(node) and all(self._is_harmless(n) for n in ast.walk(node) if isinstance(n, ast.Call))
            self._inner = set()
            return plain
        if isinstance(node, ast.Try):
            parts = [*node.body, *node.orelse, *node.finalbody, *(s for h in node.handlers for s in h.body)]
            return all(
                isinstance(p, ast.Import | ast.ImportFrom | ast.Pass | ast.FunctionDef | ast.ClassDef)
                or _is_message(p)
                or self._is_plain(p)
                for p in parts
            )
        return False

    def _is_pure(self, node: ast.expr) -> bool:
        return all(self._is_harmless(n) for n in _now(node) if isinstance(n, ast.Call))

    def _is_harmless(self, call: ast.Call) -> bool:
        """Whether a call computes a value and does nothing else: no file, no model, no training."""
        dotted = ast.unparse(call.func)
        if isinstance(call.func, ast.Name) and dotted in _PURE_BUILTINS and dotted not in self._space:
            return True
        if isinstance(call.func, ast.Name) and dotted in self._inner:
            return False
        target = self._resolve(call.func)
        if target is None:
            # a method of a plain value: "abc".split(), d.get("x"), torch.ones(3).tril()
            return (
                isinstance(call.func, ast.Attribute)
                and not _call_work(call, ())
                and self._is_plain_value(call.func.value)
            )
        if inspect.isclass(target) and issubclass(target, nn.Module):
            return False
        module = getattr(target, "__module__", None) or ""
        if target is argparse.ArgumentParser:
            return True
        if module.partition(".")[0] in _PURE_PACKAGES:
            return True
        if module.startswith(_PURE_MODULES) or module == "torch" or module.startswith("torch."):
            return called(call) not in ("load", "save", "compile", "DataLoader", *_WORK_METHODS)
        own = inspect.isclass(target) and module == self._module.__name__
        return own or dotted.startswith(("torch.", "math.", "os.path.", "os.environ.", "np.", "types."))

    def _is_plain_value(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            value = self._space.get(node.id)
            return node.id in self._inner or isinstance(
                value, str | int | float | list | tuple | dict | set | torch.Tensor
            )
        return isinstance(node, ast.Constant | ast.Call | ast.Attribute | ast.Subscript | ast.BinOp)

    def _resolve(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self._space.get(node.id)
        if isinstance(node, ast.Attribute):
            base = self._resolve(node.value)
            return (
                getattr(base, node.attr, None) if isinstance(base, types.ModuleType) or inspect.isclass(base) else None
            )
        return None


def _is_placeholder(value: Any) -> bool:
    """Whether it stands for what comes later: ``chars = ""`` before the file is read."""
    return isinstance(value, str | list | tuple | dict | set) and not value


def _is_message(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and called(node.value) in ("print", "warn")


def shown_lines(numbers: Iterable[str]) -> str:
    """ "line 12", "lines 12, 14-20 … and 3 more"."""
    lines = list(dict.fromkeys(numbers))
    more = f" … and {len(lines) - _MAX_SHOWN} more" if len(lines) > _MAX_SHOWN else ""
    return f"line{'s' if len(lines) > 1 else ''} {', '.join(lines[:_MAX_SHOWN])}{more}"

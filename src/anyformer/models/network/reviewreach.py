"""How source reaches things without writing their names: getattr, vars, attrgetter, names that are put together."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from anyformer.models.network.reviewrules import DANGEROUS_MODULES, REACHABLE

_BY_NAME = ("getattr", "setattr", "delattr")
_USUAL = {"np": "numpy", "F": "torch.nn.functional", "nn": "torch.nn", "dist": "torch.distributed"}
"""Short names that stand for these packages where the file does not import them itself."""
_HARMLESS_OF_DICT = ("update", "copy")
Found = tuple[ast.AST, str]


def full_names(tree: ast.Module) -> dict[str, str]:
    """Name in the file → what it was imported as: np → numpy, save → torch.save."""
    found = dict(_USUAL)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):  # j = torch.jit
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and len(node.targets) == 1:
            target, whole = node.targets[0], dotted(node.value, found)
            if isinstance(target, ast.Name) and whole.partition(".")[0] in ("torch", "numpy"):
                found.setdefault(target.id, whole)
    return found


def dotted(node: ast.AST, names: Mapping[str, str]) -> str:
    """``a.b.c`` of names and attributes, an imported name as what it stands for; empty for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([names.get(node.id, node.id), *reversed(parts)])


def constant_names(tree: ast.Module) -> Iterator[tuple[ast.Call, str, ast.AST | None]]:
    """(call, name, of what) of each attribute that is asked for by a constant: getattr(x, "os"), attrgetter("a.os")."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = _last(node.func)
        if called in _BY_NAME and len(node.args) > 1:
            wanted = _text(node.args[1])
            if wanted is not None:
                yield node, wanted, node.args[0]
        elif called in ("attrgetter", "methodcaller"):
            for argument in node.args if called == "attrgetter" else node.args[:1]:
                for part in (_text(argument) or "").split("."):
                    if part:
                        yield node, part, None


def reached_by_name(tree: ast.Module) -> Iterator[Found]:
    """``__dict__``, getattr with a name that is not written out, getattr handed on; then modules named in texts."""
    built = _built_names(tree)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    fine = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in _HARMLESS_OF_DICT}
    open_names = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "__dict__" and not (id(node) in fine and _is_self(node)):
            yield node, "__dict__: reaches behind Python's objects"
        elif isinstance(node, ast.Name) and node.id in _BY_NAME and id(node) not in called:
            open_names = True
            yield node, f"{node.id} is handed on: reaches attributes by names that may be put together"
        elif isinstance(node, ast.Call) and _last(node.func) in _BY_NAME and len(node.args) > 1:
            wanted = node.args[1]
            if _text(wanted) is not None:
                continue
            open_names = True
            plain = isinstance(wanted, ast.Attribute) or (isinstance(wanted, ast.Name) and wanted.id not in built)
            if not plain and not _own_part(node.args[0], built.get(getattr(wanted, "id", ""), [wanted])):
                yield node, f"{_last(node.func)} with a name that is put together while it runs"
    for node in ast.walk(tree) if open_names else ():
        name = _text(node)
        if name is not None and name.lstrip("_") in REACHABLE:
            yield node, f"names the module {name} ({DANGEROUS_MODULES[name.lstrip('_')]})"


def _built_names(tree: ast.Module) -> dict[str, list[ast.expr]]:
    """Variables that are given a text put together: name → those expressions."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        pairs: list[tuple[ast.expr, ast.expr | None]] = []
        if isinstance(node, ast.Assign):
            pairs = [(t, node.value) for t in node.targets]
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
            pairs = [(node.target, node.value)]
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
            pairs = [(node.target, ast.BinOp(node.target, node.op, node.value))]
        for target, value in pairs:
            if isinstance(target, ast.Name) and value is not None and _puts_together(value):
                found.setdefault(target.id, []).append(value)
    return found


def _puts_together(node: ast.expr) -> bool:
    if isinstance(node, ast.JoinedStr | ast.Subscript):
        return not isinstance(node, ast.Subscript) or isinstance(node.slice, ast.Slice)
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add | ast.Mod)
    texts = ("join", "replace", "format", "decode", "chr", "lower", "translate", "strip", "removeprefix", "swapcase")
    return isinstance(node, ast.Call) and _last(node.func) in texts


def _own_part(owner: ast.expr, built: list[ast.expr]) -> bool:
    """``getattr(self, f"layer_{i}")``: the name begins with a plain word, so that it is one of the model's own."""
    return isinstance(owner, ast.Name) and owner.id == "self" and all(len(_start(b)) > 1 for b in built)


def _start(node: ast.expr) -> str:
    """The letters that a text begins with for certain."""
    while isinstance(node, ast.BinOp):
        node = node.left
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    text = _text(node) or ""
    return text if text[:1].isalpha() else ""


def _is_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def _text(node: ast.AST) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _last(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""

"""Edits of a model's file: a new forward, added lines, added keywords; everything else stays as the user wrote it."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anyformer.models.graphs.derive import Derived
from anyformer.models.graphs.mask import HELPER, SDPA, hidden_keys, tokens_ahead
from anyformer.models.graphs.order import IDS, MASK, TARGET_IDS, TARGET_MASK
from anyformer.models.graphs.read import ForwardSource, dotted, node_comments, self_attribute
from anyformer.models.graphs.values import Statement

CAUSAL_HELPER = "_later_positions"


def later_positions(x: Tensor, axis: int) -> Tensor:
    """(T, T), True where a query (row) must not look at a key (column): the tokens after it. T: x's size at axis."""
    T = x.shape[axis]
    return torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)


@dataclass(frozen=True)
class Edit:
    """Replace text[start:end]."""

    start: int
    end: int
    text: str


def applied(text: str, edits: list[Edit]) -> str:
    """The text after all edits; they must not overlap."""
    for edit in sorted(set(edits), key=lambda e: (e.start, e.end), reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


class Offsets:
    """Positions of AST nodes as offsets into the text; the AST counts bytes of UTF-8 in a line."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))

    def at(self, line: int, column: int) -> int:
        """Offset of line (from 1) and column (in bytes)."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def start(self, node: ast.expr | ast.stmt) -> int:
        """Where a node begins."""
        return self.at(node.lineno, node.col_offset)

    def end(self, node: ast.expr | ast.stmt) -> int:
        """Where a node ends."""
        return self.at(node.end_lineno or node.lineno, node.end_col_offset or 0)

    def line(self, line: int) -> int:
        """Where a line begins; that after the last is the end of the text."""
        return self._starts[min(line - 1, len(self._lines))]


# ---------------------------------------------------------------- a new forward


def with_forward(text: str, derived: Derived) -> str:
    """The file with the derived forward, the head that it needs, and the function that makes its mask."""
    source, offsets = derived.source, Offsets(text)
    forward = source.forward
    first = min([forward.lineno, *(d.lineno for d in forward.decorator_list)])
    head = [Edit(offsets.line(forward.lineno), offsets.line((forward.end_lineno or 0) + 1), _forward_text(derived))]
    masked = any(HELPER in ast.unparse(s.node) for s in derived.statements)
    if masked:
        owner = min([source.owner.lineno, *(d.lineno for d in source.owner.decorator_list)])
        head.append(Edit(offsets.line(owner), offsets.line(owner), function_text(hidden_keys, HELPER)))
    if derived.head is not None:
        head.append(_head_edit(derived, offsets))
    if "torch." in "".join(e.text for e in head) and "torch" not in _imported(text):
        head.append(Edit(_after_docstring(text, offsets), _after_docstring(text, offsets), "import torch\n"))
    assert first <= forward.lineno
    return applied(text, head)


def function_text(function: object, name: str) -> str:
    """The source of one of our functions under the name that it has in a repaired file."""
    assert inspect.isfunction(function)
    text = inspect.getsource(function).replace(f"def {function.__name__}(", f"def {name}(")
    # plain annotations: the file need not import Tensor
    for before, after in (
        ("Tensor | None", "'torch.Tensor | None'"),
        (": Tensor", ": torch.Tensor"),
        ("-> Tensor", "-> torch.Tensor"),
    ):
        text = text.replace(before, after)
    return text.replace("'torch.Tensor | None'", '"torch.Tensor | None"') + "\n\n"


def _forward_text(derived: Derived) -> str:
    source = derived.source
    indent = " " * source.forward.col_offset
    inner = (
        " " * source.forward.body[0].col_offset
        if source.forward.body[0].lineno > source.forward.lineno
        else indent + "    "
    )
    annotated = any(a.annotation is not None for a in source.forward.args.args)
    needed, optional = ([IDS, TARGET_IDS], [MASK, TARGET_MASK]) if derived.target else ([IDS], [MASK])
    arguments = ", ".join(["self", *needed, *(f"{name}=None" for name in optional)])
    returns = ""
    if annotated:
        masks = [f"{name}: torch.Tensor | None = None" for name in optional]
        arguments = ", ".join(["self", *(f"{name}: torch.Tensor" for name in needed), *masks])
        returns = f" -> {ast.unparse(source.forward.returns)}" if source.forward.returns is not None else ""
    lines = [f"{indent}def forward({arguments}){returns}:\n"]
    body = source.forward.body
    if ast.get_docstring(source.forward) is not None:
        lines += source.lines[body[0].lineno - 1 : body[0].end_lineno]
    before = _leading(source)
    for statement in derived.statements:
        if statement.own and statement.line is not None:
            lines += source.lines[before.get(statement.line, statement.line) - 1 : statement.line - 1]
        lines += _statement_lines(source, statement, inner)
    return "".join(lines)


def _leading(source: ForwardSource) -> dict[int, int]:
    """Line of a statement → first line of the comments and blank lines above it."""
    found: dict[int, int] = {}
    previous = source.forward.body[0].lineno - 1
    # comments between the signature and the first statement
    while previous > source.forward.lineno and (
        not source.lines[previous - 1].strip() or source.lines[previous - 1].lstrip().startswith("#")
    ):
        previous -= 1
    for statement in source.forward.body:
        if statement.lineno > previous:
            found[statement.lineno] = previous + 1
        previous = statement.end_lineno or statement.lineno
    return found


def _statement_lines(source: ForwardSource, statement: Statement, indent: str) -> list[str]:
    """The user's own lines where nothing changed, else the statement written anew."""
    node = statement.node
    ends = [s for s in source.forward.body if s.lineno == statement.line]
    original = ends[0] if ends else None
    alone = (
        original is not None
        and sum(s.lineno <= original.lineno <= (s.end_lineno or 0) for s in source.forward.body) == 1
    )
    if original is not None and alone and statement.own and not statement.notes and not statement.renamed:
        text = list(source.lines[original.lineno - 1 : original.end_lineno])
        return [*text[:-1], text[-1] if text[-1].endswith("\n") else text[-1] + "\n"]
    remark = ""
    if original is not None and alone:
        last = (
            source.lines[(original.end_lineno or original.lineno) - 1].encode()[original.end_col_offset or 0 :].decode()
        )
        remark = f"  {last.strip()}" if last.strip().startswith("#") else ""
    lines = [f"{indent}{line}" for line in ast.unparse(node).splitlines()]
    added = [f"{indent}# {note}\n" for note in statement.notes] if not statement.own else []
    return [*added, *(f"{line}\n" for line in [*lines[:-1], lines[-1] + remark])]


def _head_edit(derived: Derived, offsets: Offsets) -> Edit:
    """The line of the missing projection, below the comment that declares it, else at the end of __init__."""
    source = derived.source
    assert derived.head is not None
    name, D, V = derived.head
    init = source.init
    assert init is not None
    indent = " " * init.body[0].col_offset
    code = f"{indent}self.{name} = {head_call(D, V)}\n"
    declared = node_comments(source).get(name)
    line = declared if declared is not None else init.end_lineno or init.lineno
    missing_end = not source.lines[line - 1].endswith("\n")
    return Edit(offsets.line(line + 1), offsets.line(line + 1), ("\n" if missing_end else "") + code)


def head_call(D: int, V: int) -> str:
    """The projection as code."""
    return f"nn.Linear({D}, {V}, bias=False)"


def _imported(text: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {a.asname or a.name for a in node.names}
    return names


def _after_docstring(text: str, offsets: Offsets) -> int:
    body = ast.parse(text).body
    skip = 0
    for node in body:
        doc = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if not doc and not future:
            break
        skip = node.end_lineno or node.lineno
    return offsets.line(skip + 1)


# ---------------------------------------------------------------- keywords added to calls


@dataclass(frozen=True)
class CallEdits:
    """What would be changed, and in words."""

    edits: list[Edit]
    changes: list[str]


def classes_of(text: str, module: nn.Module) -> list[tuple[ast.ClassDef, nn.Module]]:
    """Classes in the file that the module is made of, each with one of its instances."""
    instances = {type(m).__name__: m for m in reversed(list(module.modules()))}
    found = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef)]
    return [(n, instances[n.name]) for n in found if n.name in instances]


def mask_edits(text: str, module: nn.Module, *, batch_first: bool) -> CallEdits:
    """A causal mask for each attention call that has none. batch_first: whether all attentions will be so."""
    offsets, edits, changes = Offsets(text), list[Edit](), list[str]()
    for owner, instance in classes_of(text, module):
        loops = _loops(owner, instance)
        for call in (n for n in ast.walk(owner) if isinstance(n, ast.Call)):
            named = {k.arg: k.value for k in call.keywords}
            where = f"line {call.lineno}"
            if dotted(call.func).endswith(SDPA):
                flag, mask = named.get("is_causal"), named.get("attn_mask")
                if len(call.args) > 3 or (mask is not None and not _none(mask)):
                    continue
                edit = _set_true(offsets, call, "is_causal", flag, text)
                if edit is None:
                    continue
                edits.append(edit)
                changes.append(f"{where}: {SDPA} gets is_causal=True")
                continue
            name = self_attribute(call.func) or (call.func.id if isinstance(call.func, ast.Name) else "")
            target = getattr(instance, name, None) if self_attribute(call.func) else loops.get(name)
            keyword, attention = _mask_keyword(target)
            if keyword is None or attention is None or not (call.args or "query" in named or "src" in named):
                continue
            given = named.get(keyword)
            if given is not None and not _none(given):
                continue
            first = call.args[0] if call.args else named.get("query", named.get("src"))
            assert first is not None
            axis = 1 if batch_first or attention.batch_first else 0
            value = f"{CAUSAL_HELPER}({ast.get_source_segment(text, first)}, {axis})"
            if given is not None:
                edits.append(Edit(offsets.start(given), offsets.end(given), value))
            else:
                edits.append(_keyword(offsets, call, f"{keyword}={value}", text))
            changes.append(f"{where}: {dotted(call.func)} gets a causal mask ({keyword})")
    return CallEdits(edits, changes)


def softmax_edits(text: str, module: nn.Module) -> CallEdits:
    """A causal mask for each softmax over products of queries and keys, where attention is written out."""
    offsets, edits, changes = Offsets(text), list[Edit](), list[str]()
    for owner, _ in classes_of(text, module):
        for method in (m for m in owner.body if isinstance(m, ast.FunctionDef)):
            for call in (n for n in ast.walk(method) if isinstance(n, ast.Call)):
                scores = _softmax_input(call)
                if scores is None or not _is_product(scores, method, call.lineno):
                    continue
                inner = ast.get_source_segment(text, scores)
                mask = f"{CAUSAL_HELPER}({inner}, -1)"
                edits.append(
                    Edit(offsets.start(scores), offsets.end(scores), f"({inner}).masked_fill({mask}, float('-inf'))")
                )
                changes.append(f"line {call.lineno}: the attention scores get a causal mask before their softmax")
    return CallEdits(edits, changes)


def convolution_edits(text: str, module: nn.Module) -> CallEdits:
    """A convolution over time that is padded alike on both sides, padded on the left alone; its weights stay."""
    offsets, edits, changes = Offsets(text), list[Edit](), list[str]()
    for owner, instance in classes_of(text, module):
        loops = _loops(owner, instance)
        for call in (n for n in ast.walk(owner) if isinstance(n, ast.Call) and len(n.args) == 1 and not n.keywords):
            name = self_attribute(call.func) or (call.func.id if isinstance(call.func, ast.Name) else "")
            target = getattr(instance, name, None) if self_attribute(call.func) else loops.get(name)
            ahead = tokens_ahead(target) if isinstance(target, nn.Module) else 0
            if not ahead:
                continue
            given = call.args[0]
            edits.append(Edit(offsets.start(given), offsets.start(given), "torch.nn.functional.pad("))
            edits.append(Edit(offsets.end(given), offsets.end(given), f", ({ahead}, 0))"))
            edits.append(Edit(offsets.end(call), offsets.end(call), f"[..., :-{ahead}]"))
            changes.append(f"line {call.lineno}: {dotted(call.func)} is padded on the left alone: it saw {ahead} ahead")
    return CallEdits(edits, changes)


def batch_first_edits(text: str, module: nn.Module) -> CallEdits:
    """batch_first=True where an attention or a layer of torch's is built without it."""
    offsets, edits, changes = Offsets(text), list[Edit](), list[str]()
    names = ("MultiheadAttention", "TransformerEncoderLayer", "TransformerDecoderLayer")
    for owner, _ in classes_of(text, module):
        for call in (n for n in ast.walk(owner) if isinstance(n, ast.Call)):
            kind = dotted(call.func).rpartition(".")[2]
            named = {k.arg: k.value for k in call.keywords}
            if kind not in names or None in named:
                continue
            flag = named.get("batch_first")
            edit = _set_true(offsets, call, "batch_first", flag, text)
            if edit is None:
                continue
            edits.append(edit)
            changes.append(f"line {call.lineno}: nn.{kind} gets batch_first=True, as its input is (B, T, D)")
    return CallEdits(edits, changes)


def with_edits(text: str, edits: list[Edit]) -> str:
    """The text after edits of calls, with the function that makes the mask where they need it."""
    if any(CAUSAL_HELPER in edit.text for edit in edits):
        tree, offsets = ast.parse(text), Offsets(text)
        owner = next(n for n in tree.body if isinstance(n, ast.ClassDef))
        line = min([owner.lineno, *(d.lineno for d in owner.decorator_list)])
        edits = [*edits, Edit(offsets.line(line), offsets.line(line), function_text(later_positions, CAUSAL_HELPER))]
    if any(CAUSAL_HELPER in e.text or "torch." in e.text for e in edits) and "torch" not in _imported(text):
        at = _after_docstring(text, Offsets(text))
        edits = [*edits, Edit(at, at, "import torch\n")]
    return applied(text, edits)


def _mask_keyword(target: object) -> tuple[str | None, nn.MultiheadAttention | None]:
    if isinstance(target, nn.MultiheadAttention):
        return "attn_mask", target
    if isinstance(target, nn.TransformerEncoder):
        return "mask", _mask_keyword(target.layers[0])[1]
    if isinstance(target, nn.TransformerEncoderLayer):
        return "src_mask", target.self_attn
    return None, None


def _loops(owner: ast.ClassDef, instance: nn.Module) -> dict[str, nn.Module]:
    """``layer`` of ``for layer in self.layers`` → the first of those layers."""
    found: dict[str, nn.Module] = {}
    for loop in (n for n in ast.walk(owner) if isinstance(n, ast.For)):
        over = getattr(instance, self_attribute(loop.iter) or "", None)
        if isinstance(loop.target, ast.Name) and isinstance(over, nn.ModuleList | nn.Sequential) and len(over):
            found[loop.target.id] = over[0]
    return found


def _set_true(offsets: Offsets, call: ast.Call, name: str, flag: ast.expr | None, text: str) -> Edit | None:
    """The edit that makes a switch of the call true, where it is absent or False; None where it says something else."""
    if flag is None:
        return _keyword(offsets, call, f"{name}=True", text)
    if isinstance(flag, ast.Constant) and flag.value is False:
        return Edit(offsets.start(flag), offsets.end(flag), "True")
    return None


def _keyword(offsets: Offsets, call: ast.Call, text: str, source: str) -> Edit:
    """Insert a keyword before the closing parenthesis, after a trailing comma where there is one."""
    end = offsets.end(call) - 1
    parts: list[ast.expr] = [*call.args, *(k.value for k in call.keywords)]
    if not parts:
        return Edit(end, end, text)
    last = max(offsets.end(p) for p in parts)
    between = source[last:end]
    comma = between.find(",")
    if comma >= 0:
        return Edit(last + comma + 1, last + comma + 1, f" {text},")
    return Edit(last, last, f", {text}")


def _none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _softmax_input(call: ast.Call) -> ast.expr | None:
    """What a softmax is taken of: F.softmax(scores, -1), torch.softmax(scores, -1), scores.softmax(-1)."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "softmax":
        return None
    if dotted(call.func).startswith(("F.", "torch.", "nn.")):
        return call.args[0] if call.args else None
    return call.func.value


def _is_product(scores: ast.expr, method: ast.FunctionDef, line: int) -> bool:
    """Whether scores are a matrix product, directly or through the variables they come from in the same method."""
    todo, seen = [scores], set[str]()
    while todo:
        expression = todo.pop()
        for node in ast.walk(expression):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
                return True
            if isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in (
                "matmul",
                "bmm",
                "einsum",
                "baddbmm",
            ):
                return True
            if isinstance(node, ast.Attribute) and node.attr in ("matmul", "bmm"):
                return True
            if isinstance(node, ast.Name) and node.id not in seen:
                seen.add(node.id)
                for statement in ast.walk(method):
                    if (
                        isinstance(statement, ast.Assign)
                        and statement.lineno < line
                        and any(isinstance(t, ast.Name) and t.id == node.id for t in statement.targets)
                    ):
                        todo.append(statement.value)
    return False

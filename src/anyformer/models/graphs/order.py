"""Small readings of a forward's statements, and the names that its values get once the statements are in order."""

from __future__ import annotations

import ast

from torch import nn

from anyformer.core.errors import CallError
from anyformer.models.graphs.read import ForwardSource, names_of, node_and_part, self_attribute
from anyformer.models.graphs.values import Classifier, Statement, Value, is_position_part

IDS, MASK = "input_ids", "attention_mask"
TARGET_IDS, TARGET_MASK = "target_ids", "target_mask"
TOKEN_NAMES = (IDS, "idx", "tokens", "token_ids", "ids", "input", "inputs", "x", "src")


class Body:
    """The statements of a forward, and what each mentions."""

    def __init__(self, statements: list[ast.stmt]) -> None:
        self.names = [names_of(statement) for statement in statements]
        """What each reads from outside of itself, and what it writes."""
        self.attributes = [{a for a in map(self_attribute, ast.walk(s)) if a} for s in statements]
        """Attributes of self that each uses."""
        nodes = [node for statement in statements for node in ast.walk(statement)]
        methods = [n.func.attr for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
        called = [n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        self.swaps = any(name in ("transpose", "permute", "swapaxes", "movedim", "t") for name in methods)
        """Whether it moves axes itself, so that none of its values may be taken for batch-first."""
        self.moves = bool({*methods, *called} & {"pad", "roll", "ZeroPad1d", "ConstantPad1d"})
        """Whether it pads or moves tokens itself, so that its convolutions are left alone."""
        indexed = [n.value for n in nodes if isinstance(n, ast.Subscript)]
        unpacked = [n.value for n in nodes if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Tuple)]
        self.taken_apart = {v.id for v in [*indexed, *unpacked] if isinstance(v, ast.Name)}
        """Names that it indexes or unpacks: such a name holds the tuple of an attention."""

    def before(self, index: int, name: str) -> int | None:
        """The last statement before this one that writes a name."""
        return next((j for j in range(index - 1, -1, -1) if name in self.names[j][1]), None)


def token_parameter(
    body: list[ast.stmt], parameters: list[str], required: list[str], classify: Classifier, owner: str
) -> str:
    """The parameter that takes the ids: what an embedding reads, else by name, else the first."""
    inputs = input_parameters(required)
    if len(inputs) > 2:
        raise CallError(
            f"{owner}.forward takes {len(inputs)} inputs: {', '.join(inputs)}",
            "a model reads one sequence of token ids, or two: an encoder-decoder's source and target",
        )
    read = []
    for call in (n for s in body for n in ast.walk(s) if isinstance(n, ast.Call) and n.args):
        attribute = self_attribute(call.func)
        given = call.args[0]
        if isinstance(classify.member(attribute), nn.Embedding) and not is_position_part(attribute or ""):
            read += [given.id] if isinstance(given, ast.Name) and given.id in parameters else []
    named = [n for n in TOKEN_NAMES if n in parameters]
    rest = [p for p in required if p != MASK and not (node_and_part(p) and not p.startswith("input"))]
    for names in (read, inputs, named, rest):
        if names:
            return names[0]
    return TOKEN_NAMES[0]


def input_parameters(required: list[str]) -> list[str]:
    """Parameters that are named after input nodes: input_0_tokens."""
    return [p for p in required if (parts := node_and_part(p)) and parts[0].startswith("input")]


def assign(name: str, value: ast.expr) -> ast.Assign:
    """``name = value``."""
    return ast.Assign(targets=[ast.Name(name, ast.Store())], value=value)


def called_last(value: ast.AST) -> ast.AST:
    """The function of the outermost call, inside [0] and methods of the result."""
    while True:
        if isinstance(value, ast.Subscript):
            value = value.value
        elif isinstance(value, ast.Call):
            if self_attribute(value.func) is not None or not isinstance(value.func, ast.Attribute):
                return value.func
            value = value.func.value
        else:
            return value


def is_swapped(value: ast.expr) -> bool:
    """Whether an expression ends in .transpose(…)."""
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "transpose"


def feeds_positions(node: ast.AST, name: str, classify: Classifier) -> bool:
    """Whether a name is what an embedding of positions is given."""
    for call in (n for n in ast.walk(node) if isinstance(n, ast.Call) and n.args):
        attribute = self_attribute(call.func)
        if (
            attribute
            and is_position_part(attribute)
            and isinstance(classify.member(attribute), nn.Embedding)
            and isinstance(call.args[0], ast.Name)
            and call.args[0].id == name
        ):
            return True
    return False


def rename(order: list[Statement], source: ForwardSource) -> None:
    """Give each value its final name: its own, or a new one where another value took that name in between."""
    current: dict[str, Value] = {}
    conflicts: set[str] = set()
    for statement in order:
        for value in statement.reads.values():
            if value.name in current and current[value.name] is not value:
                conflicts.add(value.name)
        for value in statement.writes:
            current[value.name] = value
    counts: dict[str, int] = {}
    for statement in order:
        for value in statement.writes:
            number = counts[value.name] = counts.get(value.name, 0) + 1
            value.final = f"{value.name}_v{number}" if value.name in conflicts and number > 1 else value.name
    for statement in order:
        for value in statement.reads.values():
            value.final = value.final or value.name
        mapping = {n: v.final for n, v in statement.reads.items() if v.final != n}
        stores = {v.name: v.final for v in statement.writes if v.final != v.name}
        if not mapping and not stores:
            continue
        if not isinstance(statement.node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Return | ast.Expr):
            names = ", ".join(sorted({*mapping, *stores}))
            raise CallError(
                f"{source.owner.name}: {names} is overwritten inside a block, so the order cannot be changed",
                source.where(statement.line),
            )
        if isinstance(statement.node, ast.AugAssign):
            target = statement.node.target
            assert isinstance(target, ast.Name)
            sum_ = ast.BinOp(ast.Name(target.id, ast.Load()), statement.node.op, statement.node.value)
            statement.node = ast.copy_location(assign(target.id, sum_), statement.node)
        _Renamer(mapping, stores).visit(statement.node)
        ast.fix_missing_locations(statement.node)
        statement.renamed = True


class _Renamer(ast.NodeTransformer):
    def __init__(self, loads: dict[str, str], stores: dict[str, str]) -> None:
        self._loads, self._stores = loads, stores

    def visit_Name(self, node: ast.Name) -> ast.Name:
        names = self._loads if isinstance(node.ctx, ast.Load) else self._stores
        return ast.copy_location(ast.Name(names.get(node.id, node.id), node.ctx), node)

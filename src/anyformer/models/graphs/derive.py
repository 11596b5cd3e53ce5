"""From a builder export's forward to one that takes ids: statements in order, what is missing derived from the nodes.

B batch, T time, V vocabulary, D width.
"""

from __future__ import annotations

import ast
import builtins
import copy
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.graphs.mask import HELPER, LATER, PADDING, Asked, Known, MaskedCalls, Refer
from anyformer.models.graphs.nodes import NodeMaker
from anyformer.models.graphs.order import (
    IDS,
    MASK,
    TARGET_IDS,
    TARGET_MASK,
    Body,
    assign,
    called_last,
    feeds_positions,
    input_parameters,
    is_swapped,
    rename,
    token_parameter,
)
from anyformer.models.graphs.read import ForwardSource, declared_nodes, names_of, node_and_part, self_attribute
from anyformer.models.graphs.values import BRANCH, Classifier, Statement, Value, comes_from


@dataclass(frozen=True)
class Derived:
    """A forward(self, input_ids, attention_mask=None) made of the user's statements and of what was missing."""

    source: ForwardSource
    statements: list[Statement]
    findings: list[Finding]
    head: tuple[str, int, int] | None
    """Name, D and V of an output projection that has to be added; None where there is one."""
    output: str
    target: str = ""
    """The parameter that takes the decoder's input, where there are two sequences."""


@dataclass
class Deriver:
    """Emits each statement after what it reads; makes what nobody computes."""

    module: nn.Module
    source: ForwardSource
    add_head: bool = False
    """Whether a missing output projection may be assumed: the caller will add it."""
    causal: bool = True
    """Whether attentions without a mask get a causal one: a decoder's. False hides padding alone."""
    swapped: bool = False
    """Of two inputs: whether the first is the decoder's."""
    both_sides: str = ""
    """Why they get none."""
    findings: list[Finding] = field(default_factory=list)
    order: list[Statement] = field(default_factory=list)
    head: tuple[str, int, int] | None = None

    def __post_init__(self) -> None:
        body = self.source.forward.body
        body = body[1:] if ast.get_docstring(self.source.forward) is not None else body
        ends = [i for i, statement in enumerate(body) if isinstance(statement, ast.Return)]
        self.body = body[: ends[0] + 1] if ends else body
        self.nodes = declared_nodes(self.source, self.module)
        self.classify = Classifier(self.module)
        self.text = Body(self.body)
        self._state = [0] * len(self.body)
        self._made: list[dict[str, Value]] = [{} for _ in self.body]
        self._prelude: list[Statement] = []
        self.masks: dict[str, Value] = {}
        """By the call that makes each."""
        self.shifted: list[str] = []
        """Convolutions that no longer see tokens ahead."""
        self._used = {n for reads, writes in self.text.names for n in (*reads, *writes)}
        self.entry: dict[str, Value] = {}
        self.maker = NodeMaker(self)

    def derive(self) -> Derived:
        """All statements in order; CallError where something cannot be derived."""
        self._bind_parameters()
        for index in range(len(self.body)):
            self.emit(index)
        if not self.body or not isinstance(self.body[-1], ast.Return):
            value = self.maker.output("output")
            self.add(ast.Return(ast.Name(value.name, ast.Load())), {value.name: value}, [], "the result is returned")
        self._check_output()
        self._report()
        self.order = [*self._prelude, *self.order]
        rename(self.order, self.source)
        returned = self.order[-1]
        names = [v.final for v in returned.reads.values() if v.kind not in ("aux", "input")]
        target = self.target.name if self.target is not None else ""
        return Derived(self.source, self.order, self.findings, self.head, names[0] if names else "", target)

    # ---------------------------------------------------------------- parameters

    def _bind_parameters(self) -> None:
        arguments = self.source.forward.args
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs][1:]
        self.parameters = [p.arg for p in parameters]
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults = dict(
            zip(
                [p.arg for p in positional][len(positional) - len(arguments.defaults) :],
                arguments.defaults,
                strict=True,
            )
        )
        defaults |= {
            a.arg: d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None
        }
        self._nothing = {n for n, d in defaults.items() if isinstance(d, ast.Constant) and d.value is None}
        token = token_parameter(
            self.body,
            self.parameters,
            [p for p in self.parameters if p not in defaults],
            self.classify,
            self.source.owner.name,
        )
        tokens = Value(IDS, "input")
        mask = Value(MASK, "aux")
        self.entry = {IDS: tokens, MASK: mask}
        if token != IDS:
            self.entry[token] = self.add(
                assign(token, ast.Name(IDS, ast.Load())),
                {IDS: tokens},
                [],
                "the ids, under the export's name",
                kind="input",
                prelude=True,
            )
        self.tokens = self.entry[token]
        self.target: Value | None = None
        """The decoder's input, where there are two sequences."""
        inputs = input_parameters([p for p in self.parameters if p not in defaults])
        if len(inputs) == 2:
            self._bind_target(inputs if self.swapped else inputs[::-1])
        for name, default in defaults.items():
            if name not in self.entry and any(name in reads for reads, _ in self.text.names):
                self.entry[name] = self.add(
                    assign(name, copy.deepcopy(default)), {}, [], "its default", kind="aux", prelude=True
                )

    def _bind_target(self, inputs: list[str]) -> None:
        """inputs: the decoder's, then the encoder's."""
        bound: list[Value] = []
        self._prelude = [s for s in self._prelude if s.writes[0] is not self.tokens]
        for name, ids in zip(inputs, (TARGET_IDS, IDS), strict=True):
            value = Value(ids, "input")
            self.entry[ids] = value
            self.entry[name] = self.add(
                assign(name, ast.Name(ids, ast.Load())),
                {ids: value},
                [],
                "the ids, under the export's name",
                kind="input",
                prelude=True,
            )
            bound.append(self.entry[name])
        self.entry[TARGET_MASK] = Value(TARGET_MASK, "aux")
        self.target, self.tokens = bound

    # ---------------------------------------------------------------- the user's statements

    def emit(self, index: int) -> None:
        """Put a statement of the user's into the order, after what it reads."""
        if self._state[index] == 2:
            return
        statement = self.body[index]
        if self._state[index] == 1:
            raise self.error(
                "a node needs its own output",
                statement.lineno,
                "the statements form a cycle: none of them can come first",
            )
        self._state[index] = 1
        node, notes, reads = self._completed(index, copy.deepcopy(statement))
        names, writes = names_of(node)
        for name in names:
            value = reads.get(name) or self._read(index, name, node)
            if value is not None:
                reads[name] = value
        if isinstance(node, ast.Return) and (
            node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None)
        ):
            value = self.maker.output("output")
            node.value, reads[value.name] = ast.Name(value.name, ast.Load()), value
            notes.append("the result is returned")
        values = self._values(node, reads, writes)
        for value in reads.values():
            value.readers += 1
        self.order.append(Statement(node, statement.lineno, notes, reads, values))
        self._made[index] = {v.name: v for v in values}
        self._state[index] = 2

    def _completed(self, index: int, node: ast.stmt) -> tuple[ast.stmt, list[str], dict[str, Value]]:
        """The statement with its attention calls completed, and the masks that they read."""
        reads: dict[str, Value] = {}

        def made_of(expression: ast.expr | None) -> list[Value]:
            names = names_of(expression)[0] if expression is not None else []
            return [v for v in (self._read(index, n, statement) for n in names) if v is not None]

        statement = self.body[index]

        def refer(asked: Asked) -> tuple[ast.expr, str] | None:
            return self.mask(asked, made_of, reads)

        def known(value: ast.expr) -> bool:
            names = {n.id for n in ast.walk(value) if isinstance(n, ast.Name)} - {"self"}
            if names and names <= {MASK, *self._nothing}:
                return False  # the caller's padding, which our mask holds, too
            return all(self._has_value(index, name) for name in names)

        target = node.targets[0] if isinstance(node, ast.Assign) else None
        apart = isinstance(target, ast.Tuple) or (isinstance(target, ast.Name) and target.id in self.text.taken_apart)
        direct = isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and apart
        editor = self.editor(refer, known, unpacked=direct)
        edited = editor.visit(node)
        self.shifted += editor.shifted
        if (
            direct
            and isinstance(edited, ast.Assign)
            and isinstance(target, ast.Tuple)
            and not isinstance(edited.value, ast.Call | ast.Tuple)
        ):
            edited.targets = [target.elts[0]]  # the weights of the attention were not read
        elif direct and isinstance(edited, ast.Assign) and isinstance(target, ast.Tuple) and is_swapped(edited.value):
            edited.targets = [target.elts[0]]
        ast.fix_missing_locations(edited)
        return edited, editor.notes, reads

    def editor(self, refer: Refer, known: Known, *, unpacked: bool) -> MaskedCalls:
        """What completes the calls of one statement."""
        shifts = self.causal and not self.text.moves and self.target is None
        swaps = not self.text.swaps
        return MaskedCalls(self.module, refer, known, transposes=swaps, unpacked=unpacked, shifts=shifts)

    def _has_value(self, index: int, name: str) -> bool:
        return self.text.before(index, name) is not None or name in self.entry or self._is_global(name)

    def _is_global(self, name: str) -> bool:
        return name not in self.parameters and (name in self.source.namespace or hasattr(builtins, name))

    def _read(self, index: int, name: str, node: ast.AST) -> Value | None:
        """The value of a name at a statement; None for self and globals."""
        if name == "self":
            return None
        before = self.text.before(index, name)
        if before is not None:
            self.emit(before)
            return self._made[before][name]
        if name in self.entry:
            return self.entry[name]
        return self._missing(index, name, node)

    def _missing(self, index: int, name: str, node: ast.AST) -> Value | None:
        """What a name without a value stands for: a later statement's result, or a node's output."""
        line = self.body[index].lineno
        later = [j for j in range(index, len(self.body)) if name in self.text.names[j][1]]
        if len(later) > 1:
            lines = ", ".join(str(self.body[j].lineno) for j in later)
            raise self.error(f"{name} is read before it is computed", line, f"it is computed on several lines: {lines}")
        if later:
            self.emit(later[0])
            return self._made[later[0]][name]
        if self._is_global(name):
            return None
        if feeds_positions(node, name, self.classify):
            self.entry[name] = self.maker.positions(name)
            return self.entry[name]
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Name):
            value = self.maker.output(name)
        else:
            value = self.maker.by_name(name, line)
        self.entry[name] = value
        return value

    def calling(self, node: str) -> Value | None:
        """The value of the user's statement that calls a node or its last part; None where there is none."""
        members = self.members(node)
        found: dict[str, list[int]] = {}
        for index, statement in enumerate(self.body):
            value = getattr(statement, "value", None)
            if value is None or not isinstance(statement, ast.Assign | ast.AnnAssign):
                continue
            inside = self.text.attributes[index]
            outer = self_attribute(called_last(value))
            embeds = any(isinstance(self.classify.member(m), nn.Embedding) for m in members)
            for member in members:
                if member == outer or (embeds and member in inside):
                    found.setdefault(member, []).append(index)
        for member, indices in found.items():
            if len(indices) > 1:
                lines = ", ".join(str(self.body[j].lineno) for j in indices)
                what = f"self.{member} is called on several lines, so its output is not one value"
                raise self.error(what, self.body[indices[0]].lineno, f"lines {lines}")
        if not found:
            return None
        last = max(index for indices in found.values() for index in indices)
        self.emit(last)
        return next(iter(self._made[last].values()))

    def members(self, node: str) -> list[str]:
        """Attributes of self that belong to a node: mhsa_0 itself, or its parts mhsa_0_…"""
        names = [*self.module._modules, *self.module._parameters]
        return [n for n in names if n == node or ((p := node_and_part(n)) is not None and p[0] == node)]

    def is_pending(self, node: str) -> bool:
        """Whether the statements that call a node are still to come, or there are none."""
        members = self.members(node)
        uses = [i for i, used in enumerate(self.text.attributes) if not used.isdisjoint(members)]
        return all(self._state[i] == 0 for i in uses)

    def nested_call(self, node: str) -> int | None:
        """Line of a statement that calls a node somewhere inside an expression."""
        members = self.members(node)
        lines = zip(self.body, self.text.attributes, strict=True)
        return next((s.lineno for s, used in lines if not used.isdisjoint(members)), None)

    def _values(self, node: ast.stmt, reads: dict[str, Value], writes: list[str]) -> list[Value]:
        expression = getattr(node, "value", None)
        simple = isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and expression is not None
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            expression = ast.BinOp(ast.Name(node.target.id, ast.Load()), node.op, node.value)
        values = []
        for position, name in enumerate(writes):
            if simple and expression is not None and position == 0:
                made = self.classify.make(expression, reads)
                value = Value(name, made.kind, made.inputs, made.module, made.width, node.lineno)
            elif simple:
                value = Value(name, "aux", [], None, None, node.lineno)
            else:  # a block of statements
                inputs = [v for v in reads.values() if v.kind not in ("aux", "input")]
                members = [self.classify.member(a) for a in map(self_attribute, ast.walk(node)) if a]
                called = [m for m in members if isinstance(m, nn.Module)]
                embeds = all(isinstance(m, nn.Embedding | nn.Dropout) for m in called)
                kind = "embed" if embeds and all(v.kind == "embed" for v in inputs) else "block"
                widths = {v.width for v in inputs}
                width = widths.pop() if len(widths) == 1 else None
                value = Value(name, kind if inputs or called else "aux", inputs, None, width, node.lineno)
            values.append(value)
        return values

    # ---------------------------------------------------------------- what is added

    def add(
        self,
        node: ast.stmt,
        reads: dict[str, Value],
        inputs: list[Value],
        note: str,
        *,
        kind: str = "other",
        module: str | None = None,
        width: int | None = None,
        prelude: bool = False,
    ) -> Value:
        """Append a statement of our own; its value."""
        _, writes = names_of(node)
        name = writes[0] if writes else ""
        for parsed in ast.walk(node):
            if isinstance(parsed, ast.stmt | ast.expr):
                parsed.lineno = parsed.end_lineno = self.source.forward.lineno
                parsed.col_offset = parsed.end_col_offset = 0
        ast.fix_missing_locations(node)
        value = Value(name, kind, inputs, module, width, None)
        for read in reads.values():
            read.readers += 1
        statement = Statement(node, None, [note], reads, [value] if name else [], own=False)
        (self._prelude if prelude else self.order).append(statement)
        return value

    def mask(
        self, asked: Asked, made_of: Callable[[ast.expr | None], list[Value]], reads: dict[str, Value]
    ) -> tuple[ast.expr, str] | None:
        """The mask for such an attention, computed once at the top, and what it is for; None where it needs none.

        made_of: the values that an expression reads. reads: what the statement reads; the mask is added to it.
        """
        decodes, rows, causal = False, "", self.causal
        if self.target is not None:
            query, key = (any(comes_from(v, self.target) for v in made_of(e)) for e in (asked.query, asked.key))
            if key and not query:  # an encoder that reads its decoder: the inputs stand the other way round
                return None
            decodes, causal = key, key
            rows = f", {TARGET_IDS}.shape[1]" if query and not key else ""
        if not asked.padded and not causal:
            return None
        ids, mask = (TARGET_IDS, TARGET_MASK) if decodes else (IDS, MASK)
        code = f"{ids}, {mask if asked.padded else None}, {asked.heads}" + ("" if causal else f", False{rows}")
        value = self.masks.get(code) or self._made_mask(
            code, asked, "target_" if decodes else "memory_" if rows else ""
        )
        reads[value.name] = value
        return ast.Name(value.name, ast.Load()), LATER if causal else PADDING

    def _made_mask(self, code: str, asked: Asked, whose: str) -> Value:
        plain = f"{whose}hidden" if asked.padded else f"{whose}later"
        name = plain if plain not in self._used else f"{plain}_{asked.heads}"
        while name in self._used:
            name += "_"
        self._used.add(name)
        node = ast.parse(f"{name} = {HELPER}({code})").body[0]
        reads = {n: v for n, v in self.entry.items() if n in names_of(node)[0]}
        self.masks[code] = self.add(node, reads, [], "what each position must not see", kind="aux", prelude=True)
        return self.masks[code]

    def dangling(self) -> list[Value]:
        """Results that nothing has read yet, of those that carry the sequence."""
        values = [s.writes[0] for s in self.order if s.writes]
        return [v for v in values if v.readers == 0 and v.kind not in ("aux", "input")]

    def error(self, what: str, line: int | None, detail: str = "", *, repair: bool = True) -> CallError:
        """A CallError that names the line and the way out."""
        where = self.source.where(line)
        text = "\n".join(t for t in (where, detail) if t)
        return CallError(f"{self.source.owner.name}: {what}", text, "anyformer repair MODEL" if repair else "")

    # ---------------------------------------------------------------- the end

    def _check_output(self) -> None:
        """Hidden states where logits should be: the output projection is missing."""
        returned = self.order[-1]
        values = [v for v in returned.reads.values() if v.kind not in ("aux", "input")]
        rows, width = self.maker.vocabulary()
        if rows is None or len(values) != 1 or not isinstance(returned.node, ast.Return):
            return
        value = values[0]
        if isinstance(returned.node.value, ast.Name) and value.width == width and width != rows:
            self.order.pop()
            value.readers -= 1
            headed = self.maker.headed(value, returned.line)
            name = headed.name
            node = ast.copy_location(ast.Return(ast.Name(name, ast.Load())), returned.node)
            ast.fix_missing_locations(node)
            headed.readers += 1
            self.order.append(Statement(node, returned.line, ["the logits are returned"], {name: headed}, []))

    def _report(self) -> None:
        used = {self_attribute(n) for s in self.order for n in ast.walk(s.node)}
        members = [name for name, _ in self.module.named_children()]
        unused = [n for n in members if n not in used]
        if unused:
            self.findings.append(
                Finding("unused nodes", "warn", ", ".join(unused), "every node is used", "forward never calls them")
            )
        left = [v.name for v in self.dangling() if v.kind in (*BRANCH, "block", "norm", "residual")]
        if left:
            self.findings.append(
                Finding(
                    "unread outputs", "warn", ", ".join(left), "every output is read", "computed, and read by nothing"
                )
            )
        self.findings += self.maker.residuals.finding()
        if self.shifted:
            why = "padded on both sides, it sees tokens ahead: its input is moved by as many"
            self.findings.append(
                Finding("causal padding", "note", f"{', '.join(self.shifted)}: on the left", reason=why)
            )
        if self.masks:
            whose = "its attention has" if self.target is None else "its decoder's attention has"
            why = f"{whose} none: each position would see the tokens after it"
            measured = "added" if self.causal else "none added"
            self.findings.append(
                Finding("causal mask", "note", measured, reason=why if self.causal else self.both_sides)
            )

"""What a builder export leaves out: residuals, nodes that forward never calls, positions, the output projection.

T time, V vocabulary, D width.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from torch import nn

from anyformer.core.findings import Finding
from anyformer.models.graphs.mask import Asked
from anyformer.models.graphs.read import node_and_part, self_attribute
from anyformer.models.graphs.residual import Residuals
from anyformer.models.graphs.values import (
    ACTIVATIONS,
    NO_NODES,
    OUTPUT_NODES,
    RESIDUAL_NODES,
    SIMPLE,
    Value,
    comes_from,
    is_position_part,
    label,
    output_width,
    type_of,
)

if TYPE_CHECKING:
    from anyformer.models.graphs.derive import Deriver

_OUTPUT_PARTS = ("", "output", "out", "logits", "result", "hidden", "hidden_states", "outputs")


class NodeMaker:
    """Makes the values that no statement computes; each once."""

    def __init__(self, deriver: Deriver) -> None:
        self._d = deriver
        self.values: dict[str, Value] = {}
        self._active: list[str] = []
        self.residuals = Residuals(self, deriver)
        self._positions: Value | None = None

    # ---------------------------------------------------------------- by name

    def by_name(self, name: str, line: int | None) -> Value:
        """The value of an intermediate's name, mhsa_0_output; CallError for a name that is no node's."""
        parts = node_and_part(name)
        known = parts is not None and (
            parts[0] in self._d.nodes or type_of(parts[0]) in (*RESIDUAL_NODES, *ACTIVATIONS) or self._members(parts[0])
        )
        if parts is None or not known:
            shown = ", ".join(self._d.nodes) or "none"
            required = "forward asks for" if name in self._d.parameters else "forward reads"
            raise self._d.error(f"{required} {name}, which nothing computes", line, f"nodes in __init__: {shown}")
        if parts[1] not in _OUTPUT_PARTS and f"{parts[0]}_{parts[1]}" not in self._members(parts[0]):
            raise self._d.error(f"{name} names no output of {parts[0]}", line)
        return self.of(parts[0], line, name)

    def of(self, node: str, line: int | None, name: str = "") -> Value:
        """The value of a node; computed by the user's own statement where there is one."""
        if node in self.values:
            return self.values[node]
        if node in self._active:
            cycle = " → ".join([*self._active[self._active.index(node) :], node])
            raise self._d.error("its nodes need one another's output", line, f"a cycle: {cycle}")
        self._active.append(node)
        try:
            value = self._d.calling(node) or self._made(node, line, name or f"{node}_output")
        finally:
            self._active.pop()
        self.values[node] = value
        return value

    def _made(self, node: str, line: int | None, name: str) -> Value:
        kind = type_of(node)
        nested = self._d.nested_call(node)
        if nested is not None and kind not in RESIDUAL_NODES:
            raise self._d.error(
                f"the output of {node} is used inside an expression and has no name",
                nested,
                f"write {name} = … on a line of its own",
            )
        if kind.startswith("input"):
            return self._only([v for v in (self._d.tokens, self._d.target) if v is not None], node, line)
        if self._members(node) and kind not in RESIDUAL_NODES:
            return self._called(node, line, name)
        if kind in RESIDUAL_NODES:
            return self._residual(node, line, name)
        if kind in ACTIVATIONS:
            given = self.input_of(node, line)
            text = f"torch.nn.functional.{kind}" if kind not in ("tanh", "sigmoid") else f"torch.{kind}"
            return self._emit(
                name,
                f"{text}({{0}})",
                [given],
                f"{node} has no module: the function itself",
                kind="other",
                width=given.width,
            )
        if kind in OUTPUT_NODES:
            return self.output(name)
        candidates = ", ".join(label(v) for v in self._d.dangling()) or "none"
        if "pool" in kind:
            candidates += f"\nwrite {name} = x.mean(dim=1) in forward, or x[:, 0], or x.amax(dim=1), x: what it pools"
        raise self._d.error(
            f"how {node} is computed cannot be told: it has no module",
            line,
            f"results that nothing reads yet: {candidates}",
        )

    def _members(self, node: str) -> list[str]:
        return self._d.members(node)

    # ---------------------------------------------------------------- nodes with modules

    def _called(self, node: str, line: int | None, name: str) -> Value:
        members = self._members(node)
        if any(isinstance(self._member(m), nn.Embedding) for m in members):
            return self._embedding(node, members, name)
        given = self.input_of(node, line)
        if node in members:
            value = self._call(node, name, given)
            extra = [m for m in members if m != node]
            for part in extra:
                if not isinstance(self._member(part), nn.Dropout):
                    raise self._d.error(f"how self.{part} and self.{node} combine is written nowhere", line)
                value = self._call(part, name, value)
            return value
        gated = self._gated(node, members, name, given)
        if gated is not None:
            return gated
        width, before = given.width, None
        for part in members:
            module = self._member(part)
            fits = isinstance(module, SIMPLE) and (
                not isinstance(module, nn.Linear) or width in (None, module.in_features)
            )
            if isinstance(module, nn.Linear) and isinstance(before, nn.Linear):
                fits = False  # an activation stands between them, and which one is written nowhere
            before = before if isinstance(module, nn.Dropout | nn.Identity) else module
            if not fits:
                raise self._d.error(
                    f"how the parts of {node} combine is written nowhere", line, f"its parts: {', '.join(members)}"
                )
            width = output_width(module) or width
        value = given
        for part in members:
            value = self._call(part, name, value)
        return value

    def _gated(self, node: str, members: list[str], name: str, given: Value) -> Value | None:
        """``down(silu(gate(x)) * up(x))`` of a swiglu or geglu node with those parts; None for another."""
        function = {"swiglu": "silu", "geglu": "gelu"}.get(type_of(node))
        parts = {(node_and_part(m) or ("", ""))[1].removesuffix("_proj"): m for m in members}
        linear = all(isinstance(self._member(m), nn.Linear | nn.Dropout) for m in members)
        if function is None or not linear or {k for k in parts if k != "dropout"} != {"gate", "up", "down"}:
            return None
        product = f"torch.nn.functional.{function}(self.{parts['gate']}({{0}})) * self.{parts['up']}({{0}})"
        width = output_width(self._member(parts["down"]))
        value = self._emit(
            name,
            f"self.{parts['down']}({product})",
            [given],
            f"{node}: {function} of the gate, times the other half",
            kind="call",
            width=width,
            module=parts["down"],
        )
        return self._call(parts["dropout"], name, value) if "dropout" in parts else value

    def _call(self, attribute: str, name: str, given: Value) -> Value:
        """``name = self.attribute(given)``, completed as the user's own calls are."""
        d = self._d
        node = ast.parse(f"{name} = self.{attribute}(_0_)").body[0]
        module = self._member(attribute)
        attention = isinstance(module, nn.MultiheadAttention)
        if attention:
            if "cross" in attribute.lower():
                raise d.error(f"what {attribute} reads cannot be told: two sequences", None, "forward never calls it")
            node = ast.parse(f"{name} = self.{attribute}(_0_, _0_, _0_, need_weights=False)[0]").body[0]
        if isinstance(module, nn.Conv1d):
            node = ast.parse(f"{name} = self.{attribute}(_0_.transpose(1, 2)).transpose(1, 2)").body[0]
        if isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveMaxPool1d) and module.output_size in (1, (1,)):
            node = ast.parse(f"{name} = self.{attribute}(_0_.transpose(1, 2)).squeeze(-1)").body[0]
        if isinstance(module, nn.RNNBase):
            inner = "_0_" if module.batch_first or d.text.swaps else "_0_.transpose(0, 1)"
            outer = "" if inner == "_0_" else ".transpose(0, 1)"
            node = ast.parse(f"{name} = self.{attribute}({inner})[0]{outer}").body[0]
        reads = {"_0_": given}

        def refer(asked: Asked) -> tuple[ast.expr, str] | None:
            return d.mask(asked, lambda _: [given], reads)

        editor = d.editor(refer, lambda value: False, unpacked=False)
        node = editor.visit(node)
        d.shifted += editor.shifted
        assert isinstance(node, ast.Assign)
        made = d.classify.make(node.value, {"_0_": given})
        return d.add(
            node,
            reads,
            made.inputs,
            f"{attribute} is called on {given.name}",
            kind=made.kind,
            module=attribute,
            width=made.width,
        )

    def _embedding(self, node: str, members: list[str], name: str) -> Value:
        """Token embedding + position embedding, then its norm and dropout."""
        d = self._d
        if d.target is not None:
            raise d.error(f"which of the two inputs {node} reads cannot be told", None, "forward never calls it")
        terms, after = [], []
        reads = [d.tokens]
        for member in members:
            module = self._member(member)
            if isinstance(module, nn.Embedding) and is_position_part(member):
                reads.append(self.positions("positions"))
                terms.append(f"self.{member}({{1}})")
            elif isinstance(module, nn.Embedding) and not terms:
                terms.append(f"self.{member}({{0}})")
            elif isinstance(module, nn.Dropout) or "norm" in type(module).__name__.lower():
                after.append(member)
            else:
                raise d.error(
                    f"how the parts of {node} combine is written nowhere", None, f"its parts: {', '.join(members)}"
                )
        width = next((output_width(self._member(m)) for m in members), None)
        value = self._emit(
            name,
            " + ".join(terms),
            reads,
            f"{node}: tokens and positions",
            kind="embed",
            width=width,
            module=members[0],
        )
        for member in after:
            value = self._emit(
                name, f"self.{member}({{0}})", [value], f"{node}: {member}", kind="embed", width=width, module=member
            )
        return value

    def positions(self, name: str) -> Value:
        """0 … T-1."""
        if self._d.target is not None:
            raise self._d.error(f"of which of the two inputs {name} are the positions cannot be told", None)
        if self._positions is None:
            text = "torch.arange({0}.shape[1], device={0}.device)"
            self._positions = self._emit(name, text, [self._d.tokens], "each token's position", kind="aux")
        return self._positions

    def input_of(self, node: str, line: int | None) -> Value:
        """What a node that no statement calls reads: the output of the node before it in __init__."""
        d = self._d
        order = [n for n in d.nodes if type_of(n) not in NO_NODES]
        before = order[order.index(node) - 1] if node in order and order.index(node) > 0 else None
        if before is None:
            return self._only(d.dangling(), f"what {node} reads", line)
        value = self.of(before, line)
        if value.readers:  # already carried further: what came of it is the input
            onward = [v for v in d.dangling() if comes_from(v, value)]
            if onward:
                value = self._only(onward, f"what {node} reads", line)
        d.findings.append(
            Finding(
                "node input",
                "note",
                f"{node} reads {value.name}",
                reason="the node before it in __init__; forward never calls it",
            )
        )
        return value

    def _only(self, candidates: list[Value], what: str, line: int | None) -> Value:
        if len(candidates) == 1:
            return candidates[0]
        shown = ", ".join(label(v) for v in candidates) or "none"
        raise self._d.error(f"{what} cannot be told", line, f"candidates: {shown}")

    # ---------------------------------------------------------------- residuals

    def _residual(self, node: str, line: int | None, name: str) -> Value:
        branch = self.residuals.branch(node, line)
        if branch.kind == "residual":  # the user's text adds already
            return branch
        stream = self.residuals.stream(node, branch, line)
        members = self._members(node)
        added, text, reads = branch, "{0} + {1}", [stream, branch]
        for member in members:
            if isinstance(self._member(member), nn.Dropout):
                text = f"{{0}} + self.{member}({{1}})"
        value = self._emit(
            name,
            text,
            reads,
            f"{node}: the stream, plus what {added.module or added.name} made of it",
            kind="residual",
            width=stream.width or branch.width,
        )
        for member in members:
            if "norm" in type(self._member(member)).__name__.lower():
                value = self._call(member, name, value)
                value.kind = "residual"
        self.residuals.done.append(f"{node} = {label(stream)} + {label(branch)}")
        return value

    # ---------------------------------------------------------------- the output

    def output(self, name: str) -> Value:
        """The logits, where what forward returns is computed nowhere."""
        d = self._d
        parts = node_and_part(name)
        node = parts[0] if parts else ""
        if node and self._members(node) and type_of(node) in (*OUTPUT_NODES, "head", "lm_head", "linear", "projection"):
            given = self._last(node)
            value = given
            for member in self._members(node):
                value = self._call(member, name, value)
            return value
        if node and type_of(node) not in OUTPUT_NODES:
            return self.by_name(name, self._return_line())
        if parts is None and name not in OUTPUT_NODES and name != "output":
            raise d.error(f"forward returns {name}, which is computed nowhere", self._return_line())
        given = self._last(node)
        return self.headed(given, self._return_line(), name)

    def _last(self, node: str) -> Value:
        """What the output reads: the one result that nothing else does."""
        d = self._d
        order = [n for n in d.nodes if type_of(n) not in (*NO_NODES, *OUTPUT_NODES)]
        waiting = d.dangling()
        if node in d.nodes and order:
            rest = [n for n in order if d.nodes.index(n) < d.nodes.index(node) and self.residuals.is_pending(n)]
            if rest:
                self.of(rest[-1], self._return_line())
                waiting = d.dangling()
        return self._only(waiting, "what the output is made of", self._return_line())

    def headed(self, given: Value, line: int | None, name: str = "logits") -> Value:
        """Logits of the last hidden states: by a projection that is there and unused, else by one to be added."""
        d = self._d
        rows, width = self.vocabulary()
        if given.width is not None and given.width == rows and given.width != width:
            return given
        used = {self_attribute(n) for s in [*(s.node for s in d.order), *d.body] for n in ast.walk(s)}
        members = [(n, m) for n, m in d.module.named_children() if isinstance(m, nn.Linear)]
        free = [
            n
            for n, m in members
            if n not in used and m.out_features == rows and m.in_features == (given.width or width)
        ]
        if len(free) == 1:
            d.findings.append(
                Finding("head", "note", f"self.{free[0]}", reason="the only unused projection to the vocabulary")
            )
            return self._call(free[0], name, given)
        if not d.add_head:
            raise d.error(
                "the output projection is missing",
                line,
                f"it ends in hidden states {given.name}"
                + (f" (B, T, {given.width})" if given.width else "")
                + (f"; logits would be (B, T, {rows}), one per token of the vocabulary" if rows else ""),
            )
        if rows is None or (given.width or width) is None:
            raise d.error("the output projection is missing, and no embedding of tokens gives its size", line)
        parts = node_and_part(name)
        free_name = parts is not None and not self._members(parts[0]) and type_of(parts[0]) in OUTPUT_NODES
        attribute = parts[0] if parts and free_name else "lm_head"
        if hasattr(d.module, attribute):
            attribute += "_added"
        D = given.width or width
        assert D is not None
        d.head = (attribute, D, rows)
        return self._emit(
            name,
            f"self.{attribute}({{0}})",
            [given],
            "logits, by the projection that was missing",
            kind="call",
            module=attribute,
            width=rows,
        )

    def vocabulary(self) -> tuple[int | None, int | None]:
        """V and D of the token embedding."""
        found = [
            (n, m)
            for n, m in self._d.module.named_children()
            if isinstance(m, nn.Embedding) and not is_position_part(n)
        ]
        table = found[0 if self._d.target is None else -1][1] if found else None
        return (table.num_embeddings, table.embedding_dim) if table is not None else (None, None)

    def _return_line(self) -> int | None:
        lines = [s.lineno for s in self._d.body if isinstance(s, ast.Return)]
        return lines[0] if lines else self._d.source.forward.lineno

    def _member(self, name: str | None) -> object:
        return self._d.classify.member(name)

    def _emit(
        self,
        name: str,
        text: str,
        given: list[Value],
        note: str,
        *,
        kind: str,
        width: int | None = None,
        module: str | None = None,
    ) -> Value:
        """A statement of ours from a template: {0}, {1} are the values that it reads."""
        keys = [f"_{i}_" for i in range(len(given))]
        node = ast.parse(f"{name} = {text.format(*keys)}").body[0]
        return self._d.add(
            node, dict(zip(keys, given, strict=True)), given, note, kind=kind, width=width, module=module
        )

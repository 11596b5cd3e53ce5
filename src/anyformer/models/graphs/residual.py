"""What a residual connection adds to what, read from the dataflow.

The branch is the result that nothing has read yet; the stream is the value at which that branch left. A branch that
begins with a norm leaves before it in a pre-norm model and after it in a post-norm one: the model's first sublayer
tells, or a residual that the user's own text computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from anyformer.core.findings import Finding
from anyformer.models.graphs.values import (
    BRANCH,
    NO_NODES,
    RESIDUAL_NODES,
    SIMPLE,
    STREAM,
    Value,
    comes_from,
    is_norm,
    label,
    type_of,
)

if TYPE_CHECKING:
    from anyformer.models.graphs.derive import Deriver
    from anyformer.models.graphs.nodes import NodeMaker


class Residuals:
    """Finds branch and stream of each residual node."""

    def __init__(self, maker: NodeMaker, deriver: Deriver) -> None:
        self._maker = maker
        self._d = deriver
        self._style = ""
        """pre or post, once it is known."""
        self.done: list[str] = []
        """What was added to what, for the record."""
        self.guessed: list[str] = []
        """What could be read in two ways."""

    def branch(self, node: str, line: int | None) -> Value:
        """What a residual adds: the result just before it that nothing has read yet."""
        d = self._d
        order = [n for n in d.nodes if type_of(n) not in NO_NODES]
        position = order.index(node) if node in order else -1
        before = order[position - 1] if position > 0 else None
        waiting = [v for v in d.dangling() if v.kind in (*BRANCH, "residual")]
        declared: Value | None = None
        if before is not None and (not waiting or self.is_pending(before)):
            declared = self._maker.of(before, line)
            waiting = [v for v in d.dangling() if v.kind in (*BRANCH, "residual")]
        elif before is not None:
            declared = self._maker.values.get(before) or d.calling(before)
        if len(waiting) == 1:
            return waiting[0]
        if declared is not None and declared in waiting:
            others = [v for v in waiting if v is not declared]
            own = {self._maker.values.get(n) or d.calling(n): order[i + 1] for i, n in enumerate(order[:-1])}
            if all(type_of(own.get(v, "")) in RESIDUAL_NODES and own.get(v) != node for v in others):
                return declared
        shown = ", ".join(label(v) for v in waiting) or "none"
        raise d.error(f"what {node} adds cannot be told", line, f"results that nothing reads yet: {shown}")

    def is_pending(self, node: str) -> bool:
        """Whether a node is still to be computed, by a later statement or by a call of ours."""
        return node not in self._maker.values and bool(self._d.members(node)) and self._d.is_pending(node)

    def stream(self, node: str, branch: Value, line: int | None) -> Value:
        """What a residual adds the branch to: the value at which the branch left."""
        left, sublayers = self._walk(branch)
        if len(sublayers) > 1:
            raise self._d.error(
                f"two sublayers could feed {node}",
                line,
                f"candidates: {', '.join(label(v) for v in sublayers)}; between them nothing is added",
            )
        if len(left) != 1:
            raise self._d.error(
                f"what {node} adds to cannot be told",
                line,
                f"candidates: {', '.join(label(v) for v in left) or 'none'}",
            )
        start = left[0]
        if not self._is_norm(start):
            self._style = self._style or "post"
            return start
        style = self._style or self._told_style()
        if not style and start.kind != "norm":  # the norm of a sublayer that nothing was added to, or of the next one
            self.guessed.append(f"{node} adds {label(start.inputs[0])}; it could be {label(start)}")
        self._style = style or "pre"
        if self._style == "post":
            return start
        if len(start.inputs) > 1:
            raise self._d.error(
                f"what {node} adds to has no name",
                line,
                f"the sum inside of {label(start)}: write it on a line of its own",
            )
        return start.inputs[0]

    def _is_norm(self, value: Value) -> bool:
        """A norm, of the stream or of a sublayer's result."""
        return value.kind == "norm" or (value.kind == "call" and is_norm(self._d.classify.member(value.module)))

    def _walk(self, branch: Value) -> tuple[list[Value], list[Value]]:
        """Where a branch left the stream, and the sublayers on it (attentions, and stacks of linear layers)."""
        sublayers: list[Value] = []
        ends: list[Value] = []
        todo, seen = [branch], set()
        while todo:
            value = todo.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if value.kind in (*STREAM, "norm") and value is not branch:
                ends.append(value)
                continue
            if sublayers and self._is_norm(value):  # of a sublayer before this one, which nothing was added to
                ends.append(value)
                continue
            module = self._d.classify.member(value.module)
            whole = (
                bool(value.module) and not isinstance(module, nn.Dropout | nn.Identity)
                if value.kind == "attention"
                else isinstance(module, nn.Module) and value.kind == "call" and not isinstance(module, SIMPLE)
            )
            if whole:
                sublayers.append(value)
            todo += [v for v in value.inputs if v.kind not in ("aux", "input")]
        attentions = [v for v in sublayers if v.kind == "attention"]
        if attentions and len(ends) > 1:  # cross attention: the query's side is the stream
            query = [e for e in ends if comes_from(attentions[0].inputs[0], e)]
            ends = query if len(query) == 1 else ends
        return ends, sublayers

    def finding(self) -> list[Finding]:
        """How the residuals were computed, where there are any."""
        if not self.done:
            return []
        why = f"{self._style}-norm: " if self._style else ""
        what = "the stream before a sublayer's norm" if self._style == "pre" else "what the sublayer read"
        measured = f"{len(self.done)} computed: {'; '.join(self.done)}"
        findings = [Finding("residuals", "note", measured, reason=f"{why}{what}, plus what it made of it")]
        if self.guessed:
            way_out = "nothing in forward tells; write the sum into forward to settle it"
            findings.append(Finding("residual", "warn", "; ".join(self.guessed), reason=way_out))
        return findings

    def _told_style(self) -> str:
        """pre or post, where the user's own text adds a residual after a norm."""
        for statement in self._d.order:
            for value in statement.writes:
                if statement.own and value.kind == "norm" and self._sums(value):
                    return "post"
                if value.kind != "residual" or len(value.inputs) < 2 or not statement.own:
                    continue
                for branch in value.inputs:
                    if branch.kind not in BRANCH:
                        continue
                    left, _ = self._walk(branch)
                    if len(left) == 1 and left[0].kind == "norm":
                        if left[0] in value.inputs:
                            return "post"
                        if left[0].inputs[0] in value.inputs:
                            return "pre"
        return ""

    def _sums(self, value: Value) -> bool:
        """Whether a norm is given the sum of a stream and of a branch that left there."""
        for branch in value.inputs if len(value.inputs) > 1 else []:
            left, _ = self._walk(branch) if branch.kind in BRANCH else ([], [])
            if len(left) == 1 and left[0] in value.inputs:
                return True
        return False

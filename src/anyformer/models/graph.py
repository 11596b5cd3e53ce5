"""Builder exports: the dataflow of a forward that asks for its own intermediate results, derived and run.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.graphs.derive import Derived, Deriver
from anyformer.models.graphs.form import both_sides, reads_first
from anyformer.models.graphs.mask import HELPER, hidden_keys
from anyformer.models.graphs.order import IDS, MASK, TARGET_IDS, TARGET_MASK
from anyformer.models.graphs.read import (
    commented_in_forward,
    declared_nodes,
    names_of,
    node_and_part,
    read_forward,
    self_attribute,
    unwrapped,
)
from anyformer.models.graphs.values import is_position_part
from anyformer.models.signature import ModelSignatureInspector


@dataclass(frozen=True)
class GraphStep:
    """One node."""

    name: str
    """The name that it defines, "mhsa_0_output"; "return" for the last."""
    kind: str
    """input, embed, norm, attention, block, residual, call, other, aux (masks, sizes, positions), output."""
    module: str | None
    """Attribute of the model that it calls, "mhsa_0"."""
    inputs: tuple[str, ...]
    """Names of the steps that it reads."""
    line: int | None
    """Line in the user's file; None for a step that was added."""
    code: str = ""
    """The statement."""
    note: str = ""
    """What was added or changed, and why; empty for a statement as the user wrote it."""


@dataclass(frozen=True)
class Graph:
    """All steps in the order in which they run."""

    steps: tuple[GraphStep, ...]
    output: str
    """Name of the step that gives the logits (B, T, V)."""
    positions: int | None = None
    """Longest T: rows of the position embedding; None where there is none."""
    findings: tuple[Finding, ...] = ()
    """Choices that were made, and what is left unused."""
    causal: bool = True
    """Whether attentions without a mask were given a causal one; False: they look at both sides."""
    target: str = ""
    """Of an encoder-decoder: the parameter that takes the decoder's input (B, S); empty for one sequence."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Graph:
        """Back from JSON; an unknown key raises TypeError, a missing one KeyError.

        The code in a record is text to look at. What runs is always derived from the module itself.
        """
        unknown = record.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise TypeError(f"a graph has no {', '.join(sorted(unknown))}")
        steps = tuple(GraphStep(**{**s, "inputs": tuple(s["inputs"])}) for s in record["steps"])
        findings = tuple(Finding.from_dict(f) for f in record.get("findings", ()))
        causal, target = record.get("causal", True), record.get("target", "")
        return cls(steps, record["output"], record.get("positions"), findings, causal, target)


@dataclass(frozen=True)
class _Program:
    graph: Graph
    forward: Callable[..., Any]
    nodes: tuple[str, ...]
    rows: int | None
    """V of the token embedding."""
    masked: bool
    """Whether attentions were given a mask."""


_PROGRAMS: WeakKeyDictionary[nn.Module, dict[bool | None, _Program]] = WeakKeyDictionary()


def needs_graph(module: nn.Module) -> bool:
    """Whether forward demands the output of one of the module's own nodes, as {node}_{index}_output.

    A name alone decides nothing: the node must be the module's, or forward must compute that name itself.
    """
    required = ModelSignatureInspector(module).get_node_outputs()
    if not required:
        return False
    target = unwrapped(module)
    members = [*target._modules, *target._parameters]
    own = {parts[0] for parts in map(node_and_part, members) if parts}
    try:
        source = read_forward(target)
    except CallError:  # no text to read: what is on the module remains
        return any(node_of(name) in own for name in required)
    own |= {*declared_nodes(source, target), *commented_in_forward(source)}
    computed = {name for statement in source.forward.body for name in names_of(statement)[1]}
    return any(node_of(name) in own or name in computed for name in required)


def node_of(name: str) -> str:
    """``mhsa_0`` of mhsa_0_output."""
    parts = node_and_part(name)
    return parts[0] if parts else ""


def derive_graph(module: nn.Module, *, causal: bool | None = None) -> Graph:
    """The dataflow of a module's forward, in an order in which it can run, read from its source.

    causal: whether attentions that have no mask get a causal one; None: as what the graph gives for a tiny batch says
    (one row per text is a classifier's, logits for every position a decoder's), and the names of an encoder.
    Raises CallError for what cannot be derived: a missing head, an undefined name, a cycle, an unknown node, two
    results that could both be meant; it names the line.
    """
    return _program(module, causal).graph


def run_graph(
    module: nn.Module,
    graph: Graph,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    target_ids: Tensor | None = None,
    target_mask: Tensor | None = None,
) -> Tensor:
    """Logits (B, T, V) for ids (B, T) int64. attention_mask: (B, T), 1 = keep; a 0 is looked at by no other position.

    target_ids, target_mask: (B, S), the decoder's input of a graph with two sequences; logits are then (B, S, V).
    Each node runs once, on its real inputs, under autograd where that is on.
    Raises CallError for T beyond the position embedding and for a graph of another version of the module.
    """
    program = _program(module, graph.causal)
    if graph.steps != program.graph.steps:
        raise CallError(
            f"the stored graph is not that of this {type(unwrapped(module)).__name__}",
            "its forward has changed since the graph was derived",
            "derive it again: anyformer inspect MODEL",
        )
    if graph.target and target_ids is None:
        raise CallError(f"an encoder-decoder needs target_ids (B, S): {graph.target}, its decoder's input")
    T = max(t.shape[1] for t in (input_ids, target_ids) if t is not None)
    if graph.positions is not None and graph.positions < T:
        raise CallError(
            f"a sequence of {T:,} tokens is longer than the position embedding's {graph.positions:,} rows",
            fix=f"--max_length {graph.positions}",
        )
    given = (input_ids, attention_mask, target_ids, target_mask) if graph.target else (input_ids, attention_mask)
    output = _logits_in(program.forward(unwrapped(module), *given))
    if not isinstance(output, Tensor):
        raise CallError(
            f"the graph of {type(unwrapped(module)).__name__} gave no tensor", f"found {type(output).__name__}"
        )
    return output


class ComputationalGraphExecutor:
    """Runs a model whose forward asks for its own intermediate results.

    Each node is called once with its real inputs. Raises CallError where the dataflow cannot be derived.
    """

    def __init__(self, model: nn.Module, inspector: ModelSignatureInspector | None = None) -> None:
        self.model = model
        self.inspector = inspector or ModelSignatureInspector(model)
        self._graph = derive_graph(model)

    @property
    def graph(self) -> Graph:
        """The derived dataflow."""
        return self._graph

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        target_ids: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) for ids (B, T) int64; attention_mask (B, T), 1 = keep.

        target_ids, target_mask: (B, S) of an encoder-decoder, whose logits are (B, S, V).
        """
        return run_graph(self.model, self._graph, input_ids, attention_mask, target_ids, target_mask)

    __call__ = forward

    def get_layer_map(self) -> dict[str, nn.Module]:
        """Name of each submodule that the graph calls → the submodule, in the order of the calls."""
        target = unwrapped(self.model)
        called = [name for step in self._graph.steps for name in _members_in(step.code)]
        found = {name: getattr(target, name) for name in called}
        return {name: member for name, member in found.items() if isinstance(member, nn.Module)}


def _program(module: nn.Module, causal: bool | None) -> _Program:
    target = unwrapped(module)
    programs = _PROGRAMS.setdefault(target, {})
    if causal not in programs:
        program = _derived(target, causal is not False)
        if program.graph.target:
            both = partial(_given_two, target, program)
            swapped = reads_first(target, program.graph.positions, both)
            program = _derived(target, True, swapped=True) if swapped else program
        elif causal is None and program.masked:
            why = both_sides(
                target, program.nodes, program.rows, program.graph.positions, partial(_given, target, program)
            )
            program = _derived(target, False, why) if why else program
        programs[causal] = program
        programs.setdefault(program.graph.causal, program)
    return programs[causal]


def _derived(target: nn.Module, causal: bool, why: str = "asked for", *, swapped: bool = False) -> _Program:
    deriver = Deriver(target, read_forward(target), causal=causal, both_sides=why, swapped=swapped)
    derived = deriver.derive()
    graph = replace(graph_of(derived, target), causal=causal or bool(derived.target), target=derived.target)
    return _Program(
        graph, _compiled(derived), deriver.nodes, deriver.maker.vocabulary()[0], bool(deriver.masks or deriver.shifted)
    )


def _given(target: nn.Module, program: _Program, input_ids: Tensor) -> Any:
    return _logits_in(program.forward(target, input_ids, None))


def _given_two(target: nn.Module, program: _Program, input_ids: Tensor, target_ids: Tensor) -> Any:
    return _logits_in(program.forward(target, input_ids, None, target_ids, None))


def _logits_in(output: Any) -> Any:
    """The logits, or what lies in their place."""
    if isinstance(output, dict):
        output = output.get("logits")
    return output[0] if isinstance(output, list | tuple) and output else output


def graph_of(derived: Derived, module: nn.Module) -> Graph:
    """The record of a derivation."""
    steps = []
    for statement in derived.statements:
        inputs = tuple(dict.fromkeys(v.final for v in statement.reads.values()))
        made = statement.writes[0] if statement.writes else None
        returned = isinstance(statement.node, ast.Return)
        kind = "output" if returned else made.kind if made else "aux"
        name = "return" if returned else made.final if made else ""
        called = _members_in(ast.unparse(statement.node))
        attribute = (made.module if made else None) or (called[0] if called else None)
        note = "; ".join(statement.notes)
        steps.append(GraphStep(name, kind, attribute, inputs, statement.line, ast.unparse(statement.node), note))
    used = {name for step in steps for name in _members_in(step.code)}
    rows = [
        m.num_embeddings
        for n, m in module.named_children()
        if isinstance(m, nn.Embedding) and is_position_part(n) and n in used
    ]
    return Graph(tuple(steps), derived.output, min(rows, default=None), tuple(derived.findings))


def _members_in(code: str) -> list[str]:
    """Attributes of self in a statement's text."""
    tree = ast.parse("def forward(self):\n" + textwrap.indent(code, "    "))
    return [name for name in map(self_attribute, ast.walk(tree)) if name]


def _compiled(derived: Derived) -> Callable[..., Any]:
    """The statements as one function, under the user's file name and lines, so that tracebacks point there."""
    arguments = f"self, {IDS}, {MASK}=None, {TARGET_IDS}=None, {TARGET_MASK}=None"
    function = ast.parse(f"def forward({arguments}):\n    pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body = [s.node for s in derived.statements]
    tree = ast.fix_missing_locations(ast.Module(body=[function], type_ignores=[]))
    namespace = {"torch": torch, **derived.source.namespace, HELPER: hidden_keys}
    exec(compile(tree, derived.source.path, "exec", dont_inherit=True), namespace)
    forward: Callable[..., Any] = namespace["forward"]
    return forward

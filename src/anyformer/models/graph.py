"""Builder exports: the dataflow of a forward that asks for its own intermediate results, derived, run and proven.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.graphs.derive import Derived, Deriver
from anyformer.models.graphs.mask import HELPER, hidden_keys
from anyformer.models.graphs.order import IDS, MASK
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
from anyformer.models.probes import untouched
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
        return cls(steps, record["output"], record.get("positions"), findings)


@dataclass(frozen=True)
class _Program:
    graph: Graph
    forward: Callable[[nn.Module, Tensor, Tensor | None], Any]


_PROGRAMS: WeakKeyDictionary[nn.Module, _Program] = WeakKeyDictionary()


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


def derive_graph(module: nn.Module) -> Graph:
    """The dataflow of a module's forward, in an order in which it can run. Reads its source, runs nothing of it.

    Raises CallError for what cannot be derived: a missing head, an undefined name, a cycle, an unknown node, two
    results that could both be meant; it names the line.
    """
    return _program(module).graph


def run_graph(module: nn.Module, graph: Graph, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Logits (B, T, V) for ids (B, T) int64. attention_mask: (B, T), 1 = keep; a 0 is looked at by no other position.

    Each node runs once, on its real inputs, under autograd where that is on.
    Raises CallError for T beyond the position embedding and for a graph of another version of the module.
    """
    program = _program(module)
    if graph.steps != program.graph.steps:
        raise CallError(
            f"the stored graph is not that of this {type(unwrapped(module)).__name__}",
            "its forward has changed since the graph was derived",
            "derive it again: anyformer inspect MODEL",
        )
    T = input_ids.shape[1]
    if graph.positions is not None and graph.positions < T:
        raise CallError(
            f"a sequence of {T:,} tokens is longer than the position embedding's {graph.positions:,} rows",
            fix=f"--max_length {graph.positions}",
        )
    output = program.forward(unwrapped(module), input_ids, attention_mask)
    if isinstance(output, dict):
        output = output.get("logits")
    if isinstance(output, list | tuple):
        output = output[0]
    if not isinstance(output, Tensor):
        raise CallError(
            f"the graph of {type(unwrapped(module)).__name__} gave no tensor", f"found {type(output).__name__}"
        )
    return output


def prove_graph(module: nn.Module, graph: Graph) -> tuple[Finding, ...]:
    """Run the graph on tiny batches: no future leak, rows independent, the same twice; and which nodes it leaves out.

    Leaves the module as it was.
    """
    target = unwrapped(module)
    with untouched(target), torch.no_grad():
        target.eval()
        found = [_proof_of_causality(target, graph), _proof_of_rows(target, graph), _proof_of_repeat(target, graph)]
    used = {s.module for s in graph.steps} | {n for s in graph.steps for n in _members_in(s.code)}
    unused = [name for name, _ in target.named_children() if name not in used]
    nodes = Finding(
        "nodes", "warn" if unused else "ok", f"not used: {', '.join(unused)}" if unused else "every node is used"
    )
    return (*found, nodes)


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

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) for ids (B, T) int64; attention_mask (B, T), 1 = keep."""
        return run_graph(self.model, self._graph, input_ids, attention_mask)

    __call__ = forward

    def get_layer_map(self) -> dict[str, nn.Module]:
        """Name of each submodule that the graph calls → the submodule, in the order of the calls."""
        target = unwrapped(self.model)
        called = [name for step in self._graph.steps for name in _members_in(step.code)]
        found = {name: getattr(target, name) for name in called}
        return {name: member for name, member in found.items() if isinstance(member, nn.Module)}


def _program(module: nn.Module) -> _Program:
    target = unwrapped(module)
    program = _PROGRAMS.get(target)
    if program is None:
        derived = Deriver(target, read_forward(target)).derive()
        program = _Program(graph_of(derived, target), _compiled(derived))
        _PROGRAMS[target] = program
    return program


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


def _compiled(derived: Derived) -> Callable[[nn.Module, Tensor, Tensor | None], Any]:
    """The statements as one function, under the user's file name and lines, so that tracebacks point there."""
    function = ast.parse(f"def forward(self, {IDS}, {MASK}=None):\n    pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body = [s.node for s in derived.statements]
    tree = ast.fix_missing_locations(ast.Module(body=[function], type_ignores=[]))
    namespace = {"torch": torch, **derived.source.namespace, HELPER: hidden_keys}
    exec(compile(tree, derived.source.path, "exec", dont_inherit=True), namespace)
    forward: Callable[[nn.Module, Tensor, Tensor | None], Any] = namespace["forward"]
    return forward


# ---------------------------------------------------------------- proofs


def _ids(module: nn.Module, B: int, T: int, seed: int) -> Tensor:
    tables = [m for n, m in module.named_children() if isinstance(m, nn.Embedding) and not is_position_part(n)]
    rows = tables[0].num_embeddings if tables else 2
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return torch.randint(0, rows, (B, T), generator=torch.Generator().manual_seed(seed)).to(device)


def _proof_of_causality(module: nn.Module, graph: Graph) -> Finding:
    T = min(9, graph.positions or 9)
    ids = _ids(module, 2, T, 0)
    base = run_graph(module, graph, ids)
    worst, pair = 0.0, (0, 0)
    for t in range(1, T):
        other = ids.clone()
        other[:, t] = _ids(module, 2, 1, t)[:, 0]
        moved = (run_graph(module, graph, other) - base).abs().amax((0, 2))[:t]
        if float(moved.max()) > worst:
            worst, pair = float(moved.max()), (t, int(moved.argmax()))
    if worst <= 1e-5 * float(base.abs().max()):
        return Finding("causality", "ok", f"no logit before a changed token moves ({T - 1} positions)")
    measured = f"changing token {pair[0]} moves the logits at position {pair[1]} by {worst:.2g}"
    return Finding(
        "causality", "fail", measured, "no change before the changed token", "an attention without a causal mask"
    )


def _proof_of_rows(module: nn.Module, graph: Graph) -> Finding:
    ids = _ids(module, 3, min(5, graph.positions or 5), 1)
    together = run_graph(module, graph, ids)
    alone = torch.cat([run_graph(module, graph, ids[i : i + 1]) for i in range(3)])
    worst = float((together - alone).abs().max())
    if worst <= 1e-4 * float(together.abs().max()):
        return Finding("batch", "ok", f"a row alone = the row in a batch ({worst:.0e})")
    return Finding(
        "batch", "fail", f"a row alone differs by {worst:.2g}", "the same logits", "an attention needs batch_first=True"
    )


def _proof_of_repeat(module: nn.Module, graph: Graph) -> Finding:
    ids = _ids(module, 2, min(5, graph.positions or 5), 2)
    if torch.equal(run_graph(module, graph, ids), run_graph(module, graph, ids)):
        return Finding("repeat", "ok", "the same ids give the same logits twice")
    return Finding("repeat", "warn", "the logits differ at the second call", "equal", "dropout that ignores eval mode")

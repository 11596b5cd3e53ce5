"""The values that a forward's statements hand to one another, what made each, and where a branch left the stream."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from torch import nn

from anyformer.models.graphs.mask import SDPA, is_attention, is_torch_block
from anyformer.models.graphs.read import dotted, node_and_part, self_attribute

STREAM = ("embed", "residual", "block")
"""Kinds of values that a residual connection may carry on."""
BRANCH = ("attention", "call", "other")
"""Kinds of values that a residual connection may add."""
ACTIVATIONS = ("gelu", "relu", "silu", "tanh", "sigmoid", "softplus", "elu", "leaky_relu", "mish")
RESIDUAL_NODES = ("residual", "res", "skip", "add", "shortcut")
OUTPUT_NODES = ("output", "logits", "out", "result", "prediction")
NO_NODES = ("input", "mask", "positions")
"""First parts of nodes' names: those that add, those that end the model, those that compute nothing."""
SIMPLE = (nn.Linear, nn.Dropout, nn.LayerNorm, nn.GELU, nn.ReLU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity)
"""Modules that are no sublayer by themselves."""
_POSITION_PARTS = ("pos", "position", "positions", "positional", "pe", "wpe", "pos_embedding", "position_embedding")


@dataclass(eq=False)
class Value:
    """One result, under the name that the user's text gives it."""

    name: str
    kind: str
    """input, aux (sizes, positions, masks), embed, norm, attention, block, residual, call, other."""
    inputs: list[Value] = field(default_factory=list)
    module: str | None = None
    width: int | None = None
    """Size of the last axis, where it is known."""
    line: int | None = None
    readers: int = 0
    final: str = ""
    """The name after the statements were put in order; another than ``name`` where that was overwritten meanwhile."""


@dataclass(eq=False)
class Statement:
    """One statement of the derived forward."""

    node: ast.stmt
    line: int | None
    notes: list[str]
    """What was added or changed, in words; empty for a statement of the user's, unchanged."""
    reads: dict[str, Value] = field(default_factory=dict)
    writes: list[Value] = field(default_factory=list)
    own: bool = True
    """Whether it is the user's (perhaps changed), and not added."""
    renamed: bool = False


@dataclass(frozen=True)
class Made:
    """What an expression makes."""

    kind: str
    module: str | None
    inputs: list[Value]
    width: int | None


def is_norm(module: object) -> bool:
    """LayerNorm, RMSNorm and those of the user's own that are called so."""
    return isinstance(module, nn.Module) and "norm" in type(module).__name__.lower()


def is_position_part(attribute: str) -> bool:
    """Whether an attribute's name says that it holds positions: embedding_0_pos, pos_embedding."""
    parts = node_and_part(attribute)
    name = parts[1] if parts and parts[1] else attribute
    return name.lower() in _POSITION_PARTS or name.lower().startswith(("pos_", "position"))


def output_width(module: object) -> int | None:
    """Size of the last axis of what a module gives; None where that is not known."""
    if isinstance(module, nn.Linear):
        return int(module.out_features)
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    if isinstance(module, nn.MultiheadAttention):
        return int(module.embed_dim)
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[-1])
    if isinstance(module, nn.Conv1d):
        return module.out_channels
    if isinstance(module, nn.RNNBase):
        return module.hidden_size * (1 + module.bidirectional)
    if isinstance(module, nn.RMSNorm):
        return int(module.normalized_shape[-1])
    if isinstance(module, nn.Sequential):
        return next((w for w in map(output_width, reversed(list(module))) if w is not None), None)
    return None


class Classifier:
    """Says what an expression of forward makes, from the modules that it calls."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def member(self, name: str | None) -> object:
        """What self.NAME is."""
        return getattr(self._module, name, None) if name else None

    def make(self, value: ast.expr, reads: dict[str, Value]) -> Made:
        """Kind, module, inputs and width of an expression that reads these values."""
        inputs = _inputs(value, reads)
        core = self._core(value)
        if isinstance(core, ast.Name) and core.id in reads:
            source = reads[core.id]
            if source.kind == "input" and core is not value:
                return Made("aux", None, inputs, None)
            dropped = core is not value and source.kind not in ("aux", "input")
            return Made(source.kind, None, [source] if dropped else source.inputs, source.width)
        called = self._calls(value)
        tensors = [v for v in inputs if v.kind != "aux"]
        if not called and all(v.kind in ("aux", "input") for v in inputs):
            return Made("aux", None, inputs, None)
        if isinstance(core, ast.BinOp) and isinstance(core.op, ast.Add):
            return self._sum(core, called, tensors)
        if isinstance(core, ast.BinOp) and len(tensors) == 1 and not called and tensors[0].kind in (*STREAM, "norm"):
            scaled = tensors[0]  # times a number: still the stream
            return Made(scaled.kind, None, scaled.inputs, scaled.width)
        if isinstance(core, ast.Call) and dotted(core.func).endswith(("layer_norm", "rms_norm")) and tensors:
            return Made("call" if tensors[0].kind in BRANCH else "norm", None, tensors[:1], tensors[0].width)
        if isinstance(core, ast.Call):
            made = self._call(core, reads, tensors)
            if made is not None:
                return made
        width = tensors[0].width if len({v.width for v in tensors}) == 1 and not called else None
        if isinstance(core, ast.Call) and dotted(core.func).endswith((".cat", ".concat")):
            known = [v.width for v in tensors if v.width is not None]
            width = sum(known) if len(known) == len(tensors) else None
        if any(isinstance(self.member(n), nn.Embedding) for n in called) and not any(v.kind in BRANCH for v in tensors):
            return Made("embed", None, tensors, width or self._width_of(called))
        return Made("other", called[-1] if called else None, tensors, width)

    def _call(self, core: ast.Call, reads: dict[str, Value], tensors: list[Value]) -> Made | None:
        name = self_attribute(core.func)
        module = self.member(name)
        if dotted(core.func).endswith(SDPA):
            return Made("attention", None, tensors, tensors[0].width if tensors else None)
        if not isinstance(module, nn.Module):
            return None
        given = [v for argument in core.args[:3] for v in _inputs(argument, reads) if v.kind != "aux"]
        given = list(dict.fromkeys(given)) or tensors
        width = output_width(module)
        if isinstance(module, nn.Embedding):
            return Made("embed", name, given, width)
        if is_norm(module):
            embeds = any(_belongs_to_embedding(name, v) for v in given) or any(
                isinstance(self.member(n), nn.Embedding) for n in self._calls(core)
            )
            branch = bool(given) and given[0].kind in BRANCH
            kind = "embed" if embeds else "call" if branch else "norm"
            return Made(kind, name, given, width or (given[0].width if given else None))
        if is_torch_block(module):
            return Made("block", name, given, given[0].width if given else None)
        if is_attention(module):
            return Made("attention", name, given, width or (given[0].width if given else None))
        return Made("call", name, given, width)

    def _sum(self, core: ast.BinOp, called: list[str], tensors: list[Value]) -> Made:
        embeds = any(isinstance(self.member(n), nn.Embedding) for n in called)
        early = all(v.kind in ("embed", "input", "aux") for v in tensors)
        others = [n for n in called if not isinstance(self.member(n), nn.Embedding | nn.Dropout)]
        if early and not others and (embeds or tensors):
            width = next((v.width for v in tensors if v.width), None) or self._width_of(called)
            return Made("embed", None, tensors, width)
        width = next((v.width for v in tensors if v.kind in (*STREAM, "norm") and v.width), None)
        return Made("residual", None, tensors, width)

    def _core(self, value: ast.expr) -> ast.expr:
        """The expression inside dropout, [0], .contiguous(), .transpose(…) and the like."""
        while True:
            if isinstance(value, ast.Subscript):
                value = value.value
            elif isinstance(value, ast.Call):
                module = self.member(self_attribute(value.func))
                functional = dotted(value.func).endswith("dropout")
                method = isinstance(value.func, ast.Attribute) and not dotted(value.func).startswith(
                    ("torch", "F.", "nn.")
                )
                if (isinstance(module, nn.Dropout | nn.Identity) or functional) and value.args:
                    value = value.args[0]
                elif method and self_attribute(value.func) is None and isinstance(value.func, ast.Attribute):
                    value = value.func.value
                else:
                    return value
            else:
                return value

    def _calls(self, value: ast.AST) -> list[str]:
        """Names of the modules and parameters on self that an expression uses."""
        names = [self_attribute(n) for n in ast.walk(value)]
        kinds = (nn.Module, nn.Parameter)
        return [n for n in names if n and isinstance(self.member(n), kinds)]

    def _width_of(self, called: list[str]) -> int | None:
        return next((w for w in (output_width(self.member(n)) for n in called) if w is not None), None)


def _belongs_to_embedding(name: str | None, value: Value) -> bool:
    """embedding_0_norm of embedding_0: part of that node and no sublayer's own."""
    if value.kind != "embed" or name is None:
        return False
    parts = node_and_part(name)
    return parts is not None and bool(parts[1]) and parts[0].startswith(("embed", "token"))


def _inputs(value: ast.AST, reads: dict[str, Value]) -> list[Value]:
    names = [n.id for n in ast.walk(value) if isinstance(n, ast.Name) and n.id in reads]
    return list(dict.fromkeys(reads[n] for n in names))


def type_of(node: str) -> str:
    """mhsa of mhsa_0."""
    return node.rpartition("_")[0].lower()


def label(value: Value) -> str:
    """Its name; with the line where the name alone says little."""
    plain = node_and_part(value.name) is not None or value.line is None
    return value.name if plain else f"{value.name} of line {value.line}"


def comes_from(value: Value, source: Value) -> bool:
    """Whether a value was made of another, directly or through others."""
    todo, seen = [value], set()
    while todo:
        current = todo.pop()
        if current is source:
            return True
        if id(current) not in seen:
            seen.add(id(current))
            todo += current.inputs
    return False

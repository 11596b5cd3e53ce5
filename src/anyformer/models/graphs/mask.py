"""Attention calls in a forward's text: given the mask that a decoder needs, query, key and value, and the right axes.

B batch, T time (source), S time (target), H heads, D width.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anyformer.models.graphs.read import dotted, self_attribute
from anyformer.models.probes import untouched

SDPA = "scaled_dot_product_attention"


def hidden_keys(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    num_heads: int = 0,
    causal: bool = True,
    rows: int = 0,
) -> Tensor:
    """True where a query (row) must not look at a key (column): later tokens, and padding where a mask is given.

    input_ids: (B, T). attention_mask: (B, T), 1 = keep. causal: False hides padding alone. rows: queries, where they
    are not T. Returns (T, T), or (B * num_heads, T, T) with a mask, as nn.MultiheadAttention takes them; with
    num_heads 0 (1, 1, T, T) or (B, 1, T, T).
    """
    T = input_ids.shape[1]
    hidden = torch.ones(rows or T, T, dtype=torch.bool, device=input_ids.device).triu(1 if causal else T)
    if attention_mask is None:
        return hidden if num_heads else hidden[None, None]
    hidden = hidden | (attention_mask == 0)[:, None, :]
    # a row that sees nothing would give NaN: such a position looks at itself
    alone = hidden.all(-1, keepdim=True) & torch.eye(rows or T, T, dtype=torch.bool, device=input_ids.device)
    hidden = hidden & ~alone
    return hidden.repeat_interleave(num_heads, dim=0) if num_heads else hidden[:, None]


HELPER = f"_{hidden_keys.__name__}"
LATER = "without it each position sees the tokens after it"
PADDING = "it hides padding; both sides are seen"


@dataclass(frozen=True)
class Asked:
    """The mask that an attention call needs."""

    heads: int
    """0 for one mask that all heads share, with an axis for them."""
    padded: bool
    """Whether it must hide padding, too: False where the call has a mask of its own for that."""
    query: ast.expr | None
    key: ast.expr | None
    """What the queries and the keys are made of."""


Refer = Callable[[Asked], tuple[ast.expr, str] | None]
"""The expression that names the mask and what it is for; None where the call needs none."""
Known = Callable[[ast.expr], bool]
"""Whether a name has a value at this point; a mask that has none is replaced."""


def is_attention(module: object) -> bool:
    """Whether a module is an attention: torch's, or one whose class says so."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    name = type(module).__name__.lower()
    return isinstance(module, nn.Module) and ("attention" in name or "attn" in name or "mhsa" in name)


def is_torch_block(module: object) -> bool:
    """Whether a module is one of torch's own stacks of attention and feed-forward."""
    return isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder)


class MaskedCalls(ast.NodeTransformer):
    """Completes the attention calls of one statement; what it changed is in ``notes``."""

    def __init__(
        self, module: nn.Module, refer: Refer, known: Known, *, transposes: bool, unpacked: bool, shifts: bool = False
    ) -> None:
        self._module = module
        self._refer = refer
        self._known = known
        self._transposes = transposes
        """Whether calls that are not batch-first need their axes swapped; False where forward swaps them itself."""
        self._unpacked = unpacked
        """Whether the statement takes the tuple that nn.MultiheadAttention gives apart itself."""
        self._shifts = shifts
        """Whether convolutions that see tokens ahead are to see as many more behind."""
        self.shifted: list[str] = []
        """Those that were changed."""
        self.notes: list[str] = []

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        call = node.value
        if isinstance(call, ast.Call) and isinstance(self._of(call), nn.MultiheadAttention):
            return self._attention(call, index=node)
        if isinstance(call, ast.Call) and isinstance(self._of(call), nn.RNNBase):
            self.generic_visit(call)
            return node
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        target = self._of(node)
        if isinstance(target, nn.MultiheadAttention):
            return self._attention(node, index=None)
        self.generic_visit(node)
        if isinstance(target, nn.Conv1d) and self._shifts:
            return self._convolution(node, target)
        if isinstance(target, nn.RNNBase) and not self._unpacked:
            self._note("its output is the first of the two things that it returns")
            return ast.Subscript(value=node, slice=ast.Constant(0), ctx=ast.Load())
        if is_torch_block(target):
            return self._block(node, target)
        if dotted(node.func).endswith(SDPA):
            return self._sdpa(node)
        if is_attention(target) and isinstance(target, nn.Module):
            return self._custom(node, target)
        return node

    def _of(self, call: ast.Call) -> object:
        name = self_attribute(call.func)
        return getattr(self._module, name, None) if name else None

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _attention(self, call: ast.Call, index: ast.Subscript | None) -> ast.AST:
        """nn.MultiheadAttention: (query, key, value, attn_mask=…), its output alone, batch first."""
        module = self._of(call)
        assert isinstance(module, nn.MultiheadAttention)
        call = copy.deepcopy(call)
        if len(call.args) == 1 and not any(k.arg in ("key", "value") for k in call.keywords):
            call.args = [call.args[0], copy.deepcopy(call.args[0]), copy.deepcopy(call.args[0])]
            self._note("query, key and value are its input")
        call.args = [self.visit(a) for a in call.args]
        if len(call.args) < 6:
            self._masked(call, "attn_mask", "key_padding_mask", module.num_heads, ("query", "key"), positional=3)
        swap = self._transposes and not module.batch_first
        if swap:
            self._swap_inputs(call, ("query", "key", "value"))
        if index is not None:
            first = isinstance(index.slice, ast.Constant) and index.slice.value == 0
            output: ast.expr = ast.Subscript(value=call, slice=index.slice, ctx=ast.Load())
            return _swapped(output) if swap and first else output
        if self._unpacked and not swap:
            return call
        output = ast.Subscript(value=call, slice=ast.Constant(0), ctx=ast.Load())
        if not self._unpacked:
            self._note("its output is the first of the two things that it returns")
        return _swapped(output) if swap else output

    def _convolution(self, call: ast.Call, module: nn.Conv1d) -> ast.AST:
        """One that is padded alike on both sides sees ``ahead`` tokens ahead: its input is moved by so many."""
        ahead = tokens_ahead(module)
        if not ahead or len(call.args) != 1 or call.keywords:
            return call
        given = ast.unparse(call.args[0])
        text = f"{ast.unparse(call.func)}(torch.nn.functional.pad({given}, ({ahead}, 0)))[..., :-{ahead}]"
        self.shifted.append(self_attribute(call.func) or "")
        self._note(f"padded on the left alone: without it each position sees the {ahead} after it")
        return ast.parse(text, mode="eval").body

    def _block(self, call: ast.Call, module: object) -> ast.AST:
        if isinstance(module, nn.TransformerEncoder):
            layer, name = module.layers[0], "mask"
        else:
            layer, name = module, "src_mask"
        attention = getattr(layer, "self_attn", None)
        if not isinstance(attention, nn.MultiheadAttention):
            return call
        self._masked(call, name, "src_key_padding_mask", attention.num_heads, ("src",), positional=1)
        if self._transposes and not attention.batch_first:
            self._swap_inputs(call, ("src",))
            return _swapped(call)
        return call

    def _masked(
        self, call: ast.Call, name: str, padding: str, heads: int, inputs: tuple[str, ...], *, positional: int
    ) -> None:
        """Add the mask; where the call has its own padding mask, ours hides later tokens only."""
        if len(call.args) > positional and name in ("mask", "src_mask"):
            if self._known(call.args[positional]) and not _is_none(call.args[positional]):
                return
            del call.args[positional:]
        kept: list[ast.keyword] = []
        own_padding = len(call.args) > positional
        for keyword in call.keywords:
            known = self._known(keyword.value) and not _is_none(keyword.value)
            if keyword.arg == name and known:
                return
            if keyword.arg == padding:
                own_padding = own_padding or known
            if keyword.arg not in (name, padding, "is_causal") or (keyword.arg == padding and known):
                kept.append(keyword)
        call.keywords = kept
        mask = self._refer(Asked(heads, not own_padding, *_query_and_key(call, inputs)))
        if mask is not None:
            call.keywords.append(ast.keyword(name, mask[0]))
            self._note(f"{name} added: {mask[1]}")

    def _sdpa(self, call: ast.Call) -> ast.AST:
        named = {k.arg: k.value for k in call.keywords}
        flag = named.get("is_causal")
        if flag is not None and not (isinstance(flag, ast.Constant) and flag.value is False):
            return call
        mask = call.args[3] if len(call.args) > 3 else named.get("attn_mask")
        if mask is not None and not _is_none(mask) and self._known(mask):
            return call
        hidden = self._refer(Asked(0, True, *_query_and_key(call, ("query", "key"))))
        if hidden is None:
            return call
        del call.args[3:]
        call.keywords = [k for k in call.keywords if k.arg not in ("attn_mask", "is_causal")]
        call.keywords.append(ast.keyword("attn_mask", ast.UnaryOp(op=ast.Invert(), operand=hidden[0])))
        self._note(f"attn_mask added: {hidden[1]}")
        return call

    def _custom(self, call: ast.Call, module: nn.Module) -> ast.AST:
        """An attention of the user's own: masked the way its behaviour asks for, left alone where it is causal."""
        count = len(call.args)
        style = mask_style(module, count) if count in (1, 3) else None
        if style is None or any(k.arg == style[0] and self._known(k.value) for k in call.keywords):
            return call
        name, form = style
        hidden = self._refer(Asked(0, True, *_query_and_key(call, ())))
        if hidden is None:
            return call
        mask = mask_expression(hidden[0], form)
        call.keywords = [*(k for k in call.keywords if k.arg != name), ast.keyword(name, mask)]
        self._note(f"{name} added ({form}): {hidden[1]}")
        return call

    def _swap_inputs(self, call: ast.Call, names: tuple[str, ...]) -> None:
        call.args = [_swapped(a) if i < len(names) else a for i, a in enumerate(call.args)]
        for keyword in call.keywords:
            if keyword.arg in names:
                keyword.value = _swapped(keyword.value)
        self._note("it takes (T, B, D): the first two axes are swapped before and after")


def tokens_ahead(module: nn.Module) -> int:
    """How many tokens ahead a convolution over time sees that is padded alike on both sides; 0 where it is not."""
    if not isinstance(module, nn.Conv1d) or module.stride != (1,) or module.padding_mode != "zeros":
        return 0
    reach = (module.kernel_size[0] - 1) * module.dilation[0]
    padding = reach // 2 if module.padding == "same" else module.padding[0]
    return int(padding) if isinstance(padding, int) and 2 * padding == reach else 0


def _query_and_key(call: ast.Call, names: tuple[str, ...]) -> tuple[ast.expr | None, ast.expr | None]:
    """The first two arguments, by place or by these names; one alone is both."""
    given = {k.arg: k.value for k in call.keywords}
    found = [call.args[i] if i < len(call.args) else given.get(n) for i, n in enumerate([*names, "", ""][:2])]
    return found[0], found[1] if found[1] is not None else found[0]


def _swapped(value: ast.expr) -> ast.expr:
    function = ast.Attribute(value=value, attr="transpose", ctx=ast.Load())
    return ast.Call(func=function, args=[ast.Constant(0), ast.Constant(1)], keywords=[])


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


FORMS = ("1 = keep", "1 = hidden", "-inf = hidden")


def mask_expression(hidden: ast.expr, form: str) -> ast.expr:
    """The mask in the form that an attention takes, from one that is True where a key is hidden."""
    if form == FORMS[0]:
        return ast.UnaryOp(op=ast.Invert(), operand=hidden)
    if form == FORMS[1]:
        return hidden
    text = f"torch.zeros({ast.unparse(hidden)}.shape).to({ast.unparse(hidden)}.device)"
    return ast.parse(f"{text}.masked_fill({ast.unparse(hidden)}, float('-inf'))", mode="eval").body


def mask_style(module: nn.Module, inputs: int) -> tuple[str, str] | None:
    """Name and form of the mask that makes an attention of the user's own causal; None where it is so, or none does.

    inputs: 1 (x) or 3 (query, key, value). Decided by running it on x (1, 5, D).
    """
    import inspect

    width = next((m.in_features for m in module.modules() if isinstance(m, nn.Linear)), None)
    names = [
        n for n in inspect.signature(module.forward).parameters if "mask" in n.lower() and "padding" not in n.lower()
    ]
    if width is None:
        return None
    parameter = next(module.parameters())
    x = torch.randn(1, 5, width, generator=torch.Generator().manual_seed(0)).to(parameter)
    hidden = hidden_keys(torch.zeros(1, 5, dtype=torch.long, device=parameter.device))

    def run(values: Tensor, **mask: Tensor) -> Tensor | None:
        try:
            output = module(*[values] * inputs, **mask)
        except Exception:  # noqa: BLE001  (a stranger's forward may raise anything; None says that it refused)
            return None
        output = output[0] if isinstance(output, tuple) else output
        return output if isinstance(output, Tensor) and output.shape == values.shape else None

    def causal(**mask: Tensor) -> bool:
        """No position before the changed one moves, and every later one does."""
        for t in (1, 3):
            other = x.clone()
            other[:, t] += 1.0
            first, second = run(x, **mask), run(other, **mask)
            if first is None or second is None or not bool(first.isfinite().all()):
                return False
            moved = (first - second).abs().amax((0, 2))
            if float(moved[:t].max()) > 1e-5 * float(first.abs().max()) or not bool((moved[t:] > 0).all()):
                return False
        return True

    with untouched(module), torch.no_grad():
        module.eval()
        if causal():
            return None
        for name in names:
            for form, mask in zip(
                FORMS,
                (~hidden, hidden, torch.zeros(hidden.shape).masked_fill(hidden.cpu(), float("-inf")).to(x)),
                strict=True,
            ):
                if causal(**{name: mask}):
                    return name, form
    return None

"""Attention as it is computed, seen from outside: every product of queries and keys, and the softmax that follows it.

A mode below autograd sees each operation, whichever way attention is written: by hand, einsum, nn.MultiheadAttention or
scaled_dot_product_attention. N heads of all rows together, T queries, S keys, K size of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anyformer.models.probes import step_by_step

_LARGEST = 1 << 22
"""Numbers of one tensor that is followed: attention of tiny batches is far below."""
_CUTS = ("softmax", "bmm", "mm", "addmm", "embedding", "layer_norm", "rms_norm", "native_batch_norm", "convolution")
"""Operations after which a number is no longer a scaled copy of what went in."""
_FUSED = ("_scaled_dot_product", "_flash_attention", "_efficient_attention")


@dataclass
class Attention:
    """One product of queries and keys."""

    queries: Tensor
    """(N, T, K)."""
    keys: Tensor
    """(N, S, K)."""
    product: Tensor
    """queries · keysᵀ, (N, T, S)."""
    before: float = 1.0
    """What queries and keys had been multiplied by, together, since the layers that made them."""
    scores: Tensor | None = None
    """What went into the softmax, (…, T, S); None where none was seen."""
    weights: Tensor | None = None
    """What came out of it."""
    over: int = -1
    """Axis of the softmax, counted from the end."""
    softmaxes: int = 0
    """How often in a row."""
    used_raw: bool = False
    """Whether scores were multiplied with values without a softmax."""
    shares: bool = False
    """Whether values were multiplied with numbers that are none below 0, and no softmax: a sigmoid, a squared ReLU."""
    values: Tensor | None = None
    """What the weights were multiplied with, (N, S, K)."""
    applied: Tensor | None = None
    """What the values were multiplied with, in the end: the weights, dropout and what else was done to them."""
    where: str = ""
    """The submodule that computed it; empty for the module itself."""

    def scale(self) -> float | None:
        """What the product of unscaled queries and keys is multiplied by; None where it cannot be told.

        The slope of scores over products, of the difference of two rows: a bias of places (ALiBi, T5) plays no part.
        """
        if self.scores is None:
            return None
        x, y = self.product.double(), self.scores.double().reshape(self.product.shape)
        half = len(x) // 2
        if not half or len(x) % 2:
            return None
        # the first row against the second, head by head: what both have in common is gone
        dx, dy = x[half:] - x[:half], y[half:] - y[:half]
        seen = dx.isfinite() & dy.isfinite() & (y[half:] > -1e4) & (y[:half] > -1e4)
        dx, dy = dx[seen], dy[seen]
        if len(dx) < 8 or float(dx.square().sum()) < 1e-20:
            return None
        return self.before * float((dx * dy).sum() / dx.square().sum())


@dataclass
class _Record:
    attention: Attention
    kind: str  # "product", "weights"


@dataclass
class Watch:
    """All of one forward pass, in order."""

    found: list[Attention] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)
    """The submodules that run, outermost first, where somebody keeps account of them."""

    @property
    def where(self) -> str:
        """The innermost of them."""
        return self.inside[-1] if self.inside else ""


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, watch: Watch, lengths: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watch, self.lengths = watch, lengths
        self.records: dict[int, _Record] = {}
        self.factors: dict[int, float] = {}
        self.alive: list[Tensor] = []  # so that no id is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func).removeprefix("aten.").partition(".")[0]
        given = [a for a in args if isinstance(a, Tensor)]
        if name.startswith(_FUSED):
            self._fused(given, args, kwargs or {})
        elif isinstance(out, Tensor) and out.is_floating_point() and out.numel() <= _LARGEST:
            self._one(name, given, args, out)
        return out

    def _one(self, name: str, given: list[Tensor], args: Any, out: Tensor) -> None:
        self.alive.append(out)
        records = [self.records.get(id(a)) for a in given]
        if name in ("bmm", "baddbmm", "mm"):
            left, right = given[-2:]
            self._product(left, right, out, torch.bmm(left, right) if name == "baddbmm" else out)
            return
        if "softmax" in name and given:
            self._softmax(given[0], args[1] if len(args) > 1 else -1, out)
            return
        if not name.startswith(_CUTS):
            factors = [self.factors.get(id(a), 1.0) for a in given]
            factor = max(factors, key=lambda f: abs(math.log(abs(f) or 1.0)), default=1.0)
            if name in ("mul", "mul_", "div", "div_") and len(args) == 2:
                by = _number(args[1])
                if by:
                    factor = factor / by if name.startswith("div") else factor * by
            if factor != 1.0:
                self.factors[id(out)] = factor
        followed = next((r for r in records if r is not None), None)
        if followed is not None and out.numel() == followed.attention.product.numel():
            self.records[id(out)] = followed

    def _product(self, left: Tensor, right: Tensor, out: Tensor, product: Tensor) -> None:
        record = self.records.get(id(left))
        if record is not None and record.kind == "product" and left.shape[-1] in self.lengths:
            _written_out(record.attention, left.detach(), right.detach())
        if record is not None and record.kind == "weights" and record.attention.values is None and right.dim() == 3:
            record.attention.values, record.attention.applied = right.detach(), left.detach()
        if left.dim() != 3 or out.shape[-1] not in self.lengths or out.shape[-2] not in self.lengths:
            return
        if record is not None or self.records.get(id(right)) is not None:
            return
        before = self.factors.get(id(left), 1.0) * self.factors.get(id(right), 1.0)
        attention = Attention(left.detach(), right.detach().transpose(1, 2), product.detach().clone(), before)
        attention.where = self.watch.where  # (a clone: scores may be divided in place)
        self.watch.found.append(attention)
        self.records[id(out)] = _Record(attention, "product")

    def _softmax(self, scores: Tensor, dim: Any, out: Tensor) -> None:
        record = self.records.get(id(scores))
        if record is None:
            return
        attention = record.attention
        attention.softmaxes += 1
        if record.kind == "product":
            attention.scores, attention.weights = scores.detach().clone(), out.detach()
            attention.over = dim if dim < 0 else dim - scores.dim()
        self.records[id(out)] = _Record(attention, "weights")

    def _fused(self, given: list[Tensor], args: Any, kwargs: dict[str, Any]) -> None:
        q, k = given[0].detach(), given[1].detach()
        if q.dim() != 4 or k.shape[1] not in (1, q.shape[1]):
            return
        K = q.shape[-1]
        scale = kwargs.get("scale")
        scale = 1 / math.sqrt(K) if scale is None else float(scale)
        product = q.float() @ k.float().transpose(-2, -1)
        scores = product * scale
        bias = kwargs.get("attn_mask")
        if isinstance(bias, Tensor):
            scores = scores.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias
        if True in [a for a in args if isinstance(a, bool)] or kwargs.get("is_causal"):
            T, S = scores.shape[-2:]
            scores = scores.masked_fill(~torch.ones(T, S, dtype=torch.bool, device=q.device).tril(), -math.inf)
        before = self.factors.get(id(given[0]), 1.0) * self.factors.get(id(given[1]), 1.0)
        found = Attention(q.flatten(0, 1), k.flatten(0, 1), product.flatten(0, 1), before, scores.flatten(0, 1))
        found.where = self.watch.where
        found.values = given[2].detach().flatten(0, 1)
        found.weights, found.softmaxes = found.scores.softmax(-1), 1  # type: ignore[union-attr]
        self.watch.found.append(found)


def _written_out(attention: Attention, used: Tensor, values: Tensor) -> None:
    """What values were multiplied with, where no softmax was seen: one by hand, other shares, or scores."""
    if used.numel() != attention.product.numel():
        return
    shares = used.reshape(attention.product.shape)
    if not bool((shares >= 0).all()):
        attention.used_raw = True
        return
    over = next((axis for axis in (-1, -2) if float((shares.sum(axis) - 1).abs().max()) < 1e-4), None)
    attention.shares = over is None
    if over is not None:
        attention.weights, attention.applied, attention.values = shares, shares, values
        attention.over, attention.softmaxes = over, 1


def _number(value: Any) -> float | None:
    """A number, or a tensor that holds one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
        return float(value)
    return None


@contextmanager
def attended(*lengths: int) -> Iterator[Watch]:
    """Watch the attention of what runs inside, on two texts of these lengths (T and S)."""
    watch = Watch()
    with step_by_step(), _Mode(watch, set(lengths)):
        yield watch

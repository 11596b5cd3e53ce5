"""Whether a builder export looks at both sides: told by the form of what it gives, then by what speaks for an encoder.

B batch, T time, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.models.graphs.values import type_of
from anyformer.models.probes import set_mode, untouched

_POOLING = ("pool", "classifier", "classification", "cls")
"""What the type of a node that makes one row of a text begins or ends with."""
Run = Callable[[Tensor], Any]
"""The derived forward on ids (B, T)."""


def both_sides(module: nn.Module, nodes: tuple[str, ...], rows: int | None, positions: int | None, run: Run) -> str:
    """Why its attention looks at both sides, in words; empty for a decoder, which must not see later tokens.

    nodes: those of the export. rows: V of the token embedding. positions: longest T, where that is known.
    One row of numbers per text is a classifier's, but for the next token's logits. Logits for every position are a
    decoder's, unless its names speak of an encoder alone.
    """
    from anyformer.models.calls.evidence import gather  # which reads a call plan's words, and a plan holds a graph

    evidence = gather(module)
    named = [n for n in nodes if any(type_of(n).startswith(w) or type_of(n).endswith(w) for w in _POOLING)]
    said = named or (list(evidence.encoder) if evidence.says_encoder else [])
    shape = _shape(module, min(6, positions or 6), run)
    if shape is None and positions is not None:  # it may take that one length alone
        shape = _shape(module, positions, run)
    if shape is None:
        return f"its nodes {', '.join(named)} say that it gives one row per text" if named else ""
    pooled = len(shape) == 1 or (len(shape) == 2 and shape[0] == _ROWS) or (len(shape) == 3 and shape[1] == 1)
    if pooled and (shape[-1] != rows or named):
        return f"it gives one row of {shape[-1] if len(shape) > 1 else 1:,} numbers per text: a classifier"
    if not pooled and evidence.says_encoder:
        return f"{', '.join(evidence.encoder[:3])} says that it is an encoder"
    if not pooled and said and shape[-1] != rows:
        return f"it gives {shape[-1]:,} classes per token, and {', '.join(said[:3])} is no decoder's"
    return ""


_ROWS = 2


def reads_first(module: nn.Module, positions: int | None, run: Callable[[Tensor, Tensor], Any]) -> bool:
    """Whether the logits of a graph with two inputs follow the length of the one that is taken for the source."""
    T = min(6, positions or 6)
    shape = _shape(module, T, lambda ids: run(ids, ids[:, 1:]))
    return shape is not None and len(shape) == 3 and shape[1] == T


def _shape(module: nn.Module, T: int, run: Run) -> tuple[int, ...] | None:
    """Of what it gives for ids (2, T); None where it does not run."""
    device = next((t.device for t in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
    with untouched(module), torch.no_grad():
        set_mode(module, False)
        try:
            output = run(torch.zeros(_ROWS, T, dtype=torch.long, device=device))
        except Exception:  # noqa: BLE001  (a stranger's forward may raise anything; the call itself reports it)
            return None
    return tuple(output.shape) if isinstance(output, Tensor) else None

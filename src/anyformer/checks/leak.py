"""Why later tokens are seen although there is a mask: what attention itself hides, and what it does not.

N heads of all rows together, T queries and keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anyformer.checks.attended import Attention
from anyformer.checks.attention import attentions, watched_inputs, weights_of
from anyformer.checks.subject import Subject

_FEW = 1e-6
"""A weight below this is hidden."""


def instead_of_missing(subject: Subject) -> str:
    """What is wrong where a mask does something; "" where none is seen to."""
    own = [one for one in attentions(subject) if one.weights is not None]
    own = [one for one in own if one.product.shape[-1] == one.product.shape[-2] == _length(subject)]
    if not own:
        return ""
    weights = [weights_of(one) for one in own]
    if all(map(_causal, weights)):
        return (
            "the mask is right, each query weighs no later key: what comes before or after attention mixes places"
            " (view or reshape in place of transpose(1, 2), a norm or a softmax over time)"
        )
    if all(k > 0 for k in map(_ahead, weights)):
        k = min(map(_ahead, weights))
        return f"the mask begins {k + 1} places ahead: torch.triu(…, diagonal=1) hides from the very next one on"
    if all(one.applied is not None and _causal(one.applied.reshape(one.product.shape)) for one in own):
        return "the mask comes after the softmax, in which later keys had their share: fill in -inf before it"
    if any(one.over != -1 for one in own):
        return "the softmax is not over the keys: masked ones get a share all the same; softmax(dim=-1)"
    if any(map(_weakened, own)):
        return "the mask is there, and hides too little: -inf, added or filled in before the softmax"
    return ""


def _causal(weights: Tensor) -> bool:
    return float(weights.triu(1).max()) < _FEW


def _length(subject: Subject) -> int:
    return int(subject.read(watched_inputs(subject)).shape[1])


def _ahead(weights: Tensor) -> int:
    """How many places ahead are seen, where it is so many for every query and not all; else 0."""
    T = weights.shape[-1]
    seen = [k for k in range(1, T) if float(weights.diagonal(k, -2, -1).min()) >= _FEW]
    hidden = [k for k in range(1, T) if float(weights.diagonal(k, -2, -1).max()) < _FEW]
    return len(seen) if hidden and seen == list(range(1, len(seen) + 1)) and len(seen) + len(hidden) == T - 1 else 0


def _weakened(one: Attention) -> bool:
    """Whether later keys have other scores than their products alone would give."""
    if one.scores is None:
        return False
    x, y = one.product.double(), one.scores.double().reshape(one.product.shape)
    T = x.shape[-1]
    later = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
    past, ahead = (x[:, ~later], y[:, ~later]), (x[:, later], y[:, later])
    slope = float((past[0] * past[1]).sum() / (past[0] * past[0]).sum().clamp_min(1e-30))
    fits = float((past[1] - slope * past[0]).abs().max()) < 1e-3 * max(float(past[1].abs().max()), 1e-30)
    return fits and float((ahead[1] - slope * ahead[0]).abs().max()) > 1e-2 * float(past[1].abs().max())

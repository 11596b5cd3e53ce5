"""What predictors that know almost nothing would score on exactly these tokens.

The entropies of the empirical distribution are the *lowest* losses that any such predictor can reach on this text,
since they are measured on the text itself. A model below the bigram entropy uses more than the previous token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from anyformer.core.errors import DataError

Tokens = npt.NDArray[Any]
"""1-D array of ids, any integer type; may be a memory map."""

# 16 Mi int64 keys are 128 MiB, sorted in place; the token file itself is read in windows of a quarter of that
_MAX_KEYS = 1 << 24
_ID_BITS = 31  # a key is (first id − start of the range) · 2³¹ + second id: any id below 2³¹ fits into 62 bits


@dataclass(frozen=True)
class Baselines:
    """Entropies of a text, in nats per token, over the N − 1 tokens that follow another."""

    unigram: float
    """H(x): the best that one fixed distribution over the vocabulary can do."""
    bigram: float
    """H(x_t | x_{t−1}): the best that any predictor seeing only the previous token can do."""


def token_entropies(tokens: Tokens, *, max_keys: int = _MAX_KEYS) -> Baselines:
    """Unigram and bigram entropy of ``tokens`` (N,), exact counts, float64 sums.

    Memory is bounded by ``max_keys`` int64 keys plus counters of the vocabulary's size, whatever N is: pairs are
    counted for a range of first tokens at a time, and the ranges are chosen so that each fits.
    Raises DataError where there are fewer than 2 tokens.
    """
    if len(tokens) < 2:
        raise DataError(
            f"the text to measure has {len(tokens)} tokens",
            detail="at least 2 are needed: the first only serves to predict the second",
        )
    # what precedes and what follows differ by one token at each end; both entropies are over the same N − 1 targets
    before, after = _counts(tokens[:-1], max_keys), _counts(tokens[1:], max_keys)
    pairs = len(tokens) - 1
    nats = 0.0
    low = 0
    while low < len(before):
        high = _range_end(before, low, max_keys)
        if int(before[low:high].sum()) > max_keys:  # a single very frequent token: count its followers directly
            nats += _nats(_followers(tokens, low, len(after), max_keys), before[low])
        else:
            nats += _range_nats(tokens, before, low, high, max_keys)
        low = high
    return Baselines(unigram=_nats(after, np.int64(pairs)) / pairs, bigram=nats / pairs)


def _windows(tokens: Tokens, max_keys: int) -> list[slice]:
    size = max(1, max_keys // 4)
    return [slice(start, min(start + size, len(tokens))) for start in range(0, len(tokens), size)]


def _counts(tokens: Tokens, max_keys: int) -> npt.NDArray[np.int64]:
    """How often each id occurs, (largest id + 1,)."""
    size = max(int(tokens[window].max()) for window in _windows(tokens, max_keys)) + 1
    total = np.zeros(size, dtype=np.int64)
    for window in _windows(tokens, max_keys):
        total += np.bincount(tokens[window], minlength=size)
    return total


def _nats(counts: npt.NDArray[np.int64], total: np.int64 | npt.NDArray[np.int64]) -> float:
    """Σ c · ln(total / c): nats to code ``counts`` occurrences that make up ``total``."""
    seen = counts > 0
    of = np.broadcast_to(total, counts.shape)[seen].astype(np.float64)
    return float(np.sum(counts[seen] * (np.log(of) - np.log(counts[seen].astype(np.float64)))))


def _range_end(before: npt.NDArray[np.int64], low: int, max_keys: int) -> int:
    """End of the longest range of first tokens from ``low`` whose pairs fit; at least one token long."""
    cumulative = np.cumsum(before[low:])
    return low + max(1, int(np.searchsorted(cumulative, max_keys, side="right")))


def _followers(tokens: Tokens, first: int, size: int, max_keys: int) -> npt.NDArray[np.int64]:
    """How often each id follows the id ``first``, (size,)."""
    total = np.zeros(size, dtype=np.int64)
    for window in _windows(tokens[:-1], max_keys):
        total += np.bincount(tokens[1:][window][tokens[:-1][window] == first], minlength=size)
    return total


def _range_nats(tokens: Tokens, before: npt.NDArray[np.int64], low: int, high: int, max_keys: int) -> float:
    """Nats of every token whose predecessor lies in [low, high), each coded given that predecessor."""
    keys = np.empty(int(before[low:high].sum()), dtype=np.int64)
    filled = 0
    for window in _windows(tokens[:-1], max_keys):
        first = tokens[:-1][window].astype(np.int64)
        inside = (first >= low) & (first < high)
        found = ((first[inside] - low) << _ID_BITS) | tokens[1:][window][inside].astype(np.int64)
        keys[filled : filled + len(found)] = found
        filled += len(found)
    keys.sort()
    edges = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1], [True])))
    return _nats(np.diff(edges), before[low + (keys[edges[:-1]] >> _ID_BITS)]) if len(keys) else 0.0

"""Entropies against a dictionary of counts, and against closed forms."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.core.errors import DataError
from anyformer.evaluation import token_entropies


def by_dictionary(tokens: list[int]) -> tuple[float, float]:
    """H(x_t) and H(x_t | x_{t−1}) from their definitions, over the N − 1 targets, summed exactly."""
    targets = Counter(tokens[1:])
    pairs = Counter(pairwise(tokens))
    firsts = Counter(tokens[:-1])
    n = len(tokens) - 1
    unigram = -math.fsum(count / n * math.log(count / n) for count in targets.values())
    bigram = -math.fsum(count / n * math.log(count / firsts[first]) for (first, _), count in pairs.items())
    return unigram, bigram


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 70_000) | st.integers(0, 3), min_size=2, max_size=300),
    st.sampled_from([1, 2, 7, 64, 1 << 24]),
)
def test_equals_counting_by_hand_for_any_memory_bound(tokens: list[int], max_keys: int) -> None:
    measured = token_entropies(np.array(tokens, dtype=np.uint32), max_keys=max_keys)
    unigram, bigram = by_dictionary(tokens)
    assert measured.unigram == pytest.approx(unigram, abs=1e-12)
    assert measured.bigram == pytest.approx(bigram, abs=1e-12)


def test_deterministic_cycle_leaves_nothing_to_guess() -> None:
    tokens = np.tile(np.arange(7, dtype=np.uint16), 100)
    measured = token_entropies(tokens)
    assert measured.bigram == 0.0
    assert measured.unigram == pytest.approx(math.log(7), abs=1e-4)


def test_uniform_draws_are_ln_v() -> None:
    tokens = np.random.default_rng(0).integers(0, 16, 400_000).astype(np.uint16)
    measured = token_entropies(tokens)
    # the plug-in estimate lies below by about (cells − 1) / 2N: 16 · 15 / 800,000
    assert measured.unigram == pytest.approx(math.log(16), abs=1e-4)
    assert measured.bigram == pytest.approx(math.log(16), abs=1e-3)
    assert measured.bigram <= measured.unigram


def test_first_order_chain_reaches_its_entropy_rate() -> None:
    """A two-state chain that stays with 0.9: rate H(0.9), single tokens ln 2."""
    rng = np.random.default_rng(1)
    tokens = np.cumsum(rng.random(300_000) < 0.1).astype(np.uint16) % 2
    measured = token_entropies(tokens)
    assert measured.bigram == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=5e-3)
    assert measured.unigram == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_reads_memory_maps_with_the_largest_ids(tmp_path: Path, dtype: type) -> None:
    top = 65_535 if dtype is np.uint16 else 300_000
    tokens = [top, 0, top, top - 1, 0, top, 0]
    np.array(tokens, dtype=dtype).tofile(tmp_path / "tokens.bin")
    measured = token_entropies(np.memmap(tmp_path / "tokens.bin", dtype=dtype, mode="r"))
    assert (measured.unigram, measured.bigram) == pytest.approx(by_dictionary(tokens), abs=1e-12)


@pytest.mark.parametrize("tokens", [[], [5]])
def test_too_short_says_so(tokens: list[int]) -> None:
    with pytest.raises(DataError, match=f"has {len(tokens)} tokens"):
        token_entropies(np.array(tokens, dtype=np.uint16))

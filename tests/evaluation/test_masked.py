"""Hidden tokens: the loss against a loop, baselines against counts by hand, and no dependence on the batch size."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anyformer.core.errors import DataError
from anyformer.evaluation.masked import count_guesses, likeliest, score_masked
from anyformer.models.masking import Masking, fixed_masked_batch
from anyformer.models.plan import CallPlan

V, T = 23, 12
MASKING = Masking(mask_id=22, vocab_size=22, special_ids=(22,), seed=1)
PLAN = CallPlan(
    token_arg="input_ids", mask_arg=None, targets_arg=None, needs_targets=False, logits_path=(), vocab_size=V,
    embedding_rows=V, max_positions=T, family="encoder", causal=False, findings=(),
)  # fmt: skip


class BothSides(nn.Module):
    """Every position sees the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 8)
        self.head = nn.Linear(8, V)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        logits: Tensor = self.head(x + x.mean(1, keepdim=True))
        return logits


def text(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, 20, length).astype(np.uint16)


@pytest.mark.parametrize("length", [2, 12, 13, 61, 100])
def test_the_loss_is_that_of_a_loop_whatever_the_batch(length: int) -> None:
    torch.manual_seed(0)
    model, tokens = BothSides().double(), text(length)
    starts = [*range(0, length - T, T)] if length > T else [0]
    nats, right, places = [], [], []
    for start in starts:
        width = min(T, length - 1) if length <= T else T
        row = torch.tensor(tokens[start : start + width].astype(np.int64))[None]
        hidden = fixed_masked_batch({"input_ids": row, "labels": row}, MASKING)
        logits = model(hidden["input_ids"])[0].log_softmax(-1)
        for t in range(width):
            if int(hidden["labels"][0, t]) != -100:
                nats.append(-float(logits[t, int(row[0, t])]))
                right.append(int(logits[t].argmax()) == int(row[0, t]))
                places.append(start + t)
    for size in (1, 4):
        scores = score_masked(model, PLAN, tokens, MASKING, block_size=T, batch_size=size, device="cpu")
        if (length - 1) % T == 0 or length <= T:  # whole windows; a tail overlaps the window before it
            assert scores.loss == pytest.approx(np.mean(nats), rel=1e-9)
            assert scores.accuracy == pytest.approx(np.mean(right))
            assert scores.tokens == len(nats)
            assert (scores.unigram, scores.bigram) == pytest.approx(count_guesses(tokens, np.asarray(places)))
        assert scores.beats_unigram == (scores.loss < scores.unigram)
        assert scores.beats_bigram == (scores.loss < scores.bigram)
    other = score_masked(model, PLAN, tokens, MASKING, block_size=T, batch_size=3, device="cpu")
    assert other.tokens == scores.tokens
    assert other.loss == pytest.approx(scores.loss, rel=1e-12)


def test_counts_by_hand() -> None:
    tokens = text(200)
    places = np.asarray([0, 3, 50, 51, 199])
    single, pair = Counter(tokens.tolist()), Counter(pairwise(tokens.tolist()))
    before = Counter(tokens[:-1].tolist())
    unigram = np.mean([-np.log(single[int(tokens[p])] / 200) for p in places])
    bigram = np.mean(
        [-np.log(pair[int(tokens[p - 1]), int(tokens[p])] / before[int(tokens[p - 1])]) for p in places[1:]]
    )
    assert count_guesses(tokens, places) == (pytest.approx(unigram), pytest.approx(bigram))


def test_windows_of_the_text_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, places = text(300), np.arange(0, 300, 7)
    whole = count_guesses(tokens, places)
    monkeypatch.setattr("anyformer.evaluation.masked._WINDOW", 11)
    assert count_guesses(tokens, places) == pytest.approx(whole, rel=1e-12)


def test_too_little_text_and_the_likeliest() -> None:
    model = BothSides()
    with pytest.raises(DataError, match="has 1 tokens"):
        score_masked(model, PLAN, text(1), MASKING, block_size=T, batch_size=2, device="cpu")
    ids = torch.tensor([[1, 22, 3]])
    model.train()
    order = model(ids)[0, 1].argsort(descending=True).tolist()
    assert likeliest(model, PLAN, ids, 1, 3) == order[:3]
    assert model.training

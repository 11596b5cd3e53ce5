"""Scores of classes and of written texts against scikit-like loops by hand."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.data.pairs import PaddedExamples, Ragged
from anyformer.evaluation.examples import macro_f1, score_classes, score_writing, written_entropies
from anyformer.evaluation.generation import generate
from anyformer.models.plan import CallPlan

V, C = 11, 3


def plan(family: str, width: int, mask: str | None = None) -> CallPlan:
    return CallPlan(
        token_arg="input_ids", mask_arg=mask, targets_arg=None, needs_targets=False, logits_path=(), vocab_size=width,
        embedding_rows=V, max_positions=None, family=family, causal=False, findings=(),  # type: ignore[arg-type]
        target_arg="target_ids" if family == "encoder_decoder" else None, target_vocab=V,
    )  # fmt: skip


class Classes(nn.Module):
    """Reads everything, padding too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, C)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.embedding(input_ids).mean(1) * 3


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(V, 8), nn.Embedding(V, 8)
        self.head = nn.Linear(8, V)

    def forward(self, input_ids: Tensor, target_ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.target(target_ids) + self.source(input_ids).sum(1, keepdim=True))
        return logits


def rows(count: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(4, V, rng.integers(1, 9)).tolist() for _ in range(count)]


def test_classes_against_a_loop() -> None:
    torch.manual_seed(0)
    model, texts = Classes().double(), rows()
    labels = np.random.default_rng(1).integers(0, 2, len(texts))
    logits = [model(torch.tensor([text]))[0].log_softmax(-1).detach() for text in texts]
    given = [int(row.argmax()) for row in logits]
    for size in (1, 7):
        scores = score_classes(
            model, plan("classifier", C), PaddedExamples(Ragged.of(texts), labels, 0), exact=True, batch_size=size,
            device="cpu",
        )  # fmt: skip
        assert scores.loss == pytest.approx(np.mean([-float(row[y]) for row, y in zip(logits, labels, strict=True)]))
        assert scores.accuracy == pytest.approx(np.mean(np.asarray(given) == labels))
        share = max(Counter(labels.tolist()).values()) / len(labels)
        assert scores.majority_accuracy == pytest.approx(share)
        assert scores.prior_entropy == pytest.approx(-share * np.log(share) - (1 - share) * np.log(1 - share))
        assert scores.macro_f1 == pytest.approx(macro_f1(np.asarray(given), labels))
        assert scores.beats_majority == (scores.accuracy > scores.majority_accuracy)
        assert scores.examples == 40


def test_macro_f1_by_hand() -> None:
    given, wanted = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 1, 2])
    # class 0: P 1/2, R 1; class 1: P 1, R 1/3; class 2: P 1/2, R 1
    assert macro_f1(given, wanted) == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
    assert macro_f1(wanted, wanted) == 1.0


def test_writing_against_a_loop() -> None:
    torch.manual_seed(0)
    model, texts = Writes().double(), rows()
    written = [[2, *text[::-1], 3] for text in texts]
    nats, pairs = [], []
    for text, out in zip(texts, written, strict=True):
        logits = model(torch.tensor([text]), torch.tensor([out]))[0].log_softmax(-1)
        nats += [-float(logits[s, out[s + 1]]) for s in range(len(out) - 1)]
        pairs += list(pairwise(out))
    examples = PaddedExamples(Ragged.of(texts), Ragged.of(written), 0)
    for size in (1, 6):
        scores = score_writing(model, plan("encoder_decoder", V), examples, exact=True, batch_size=size, device="cpu")
        assert scores.tokens == len(nats)
        assert scores.loss == pytest.approx(np.mean(nats), rel=1e-9)
        assert scores.perplexity == pytest.approx(np.exp(np.mean(nats)), rel=1e-9)
        assert scores.beats_bigram == (scores.loss < scores.bigram)
    both, before, after = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    assert scores.bigram == pytest.approx(np.mean([-np.log(both[p] / before[p[0]]) for p in pairs]))
    assert scores.unigram == pytest.approx(np.mean([-np.log(after[b] / len(pairs)) for _, b in pairs]))
    assert written_entropies(Ragged.of(written)) == (scores.unigram, scores.bigram)


def test_an_encoder_decoder_writes_what_greedy_search_by_hand_writes() -> None:
    torch.manual_seed(3)
    model = Writes()
    source = torch.tensor([[4, 5, 6], [7, 8, 9]])
    ids = torch.full((2, 1), 2)
    for _ in range(5):
        ids = torch.cat([ids, model(source, ids)[:, -1].argmax(-1, keepdim=True)], 1)
    made = generate(model, plan("encoder_decoder", V), source, max_length=6, temperature=0.0, start_token_id=2)
    assert torch.equal(made, ids)
    with pytest.raises(CallError, match="begins what the model writes"):
        generate(model, plan("encoder_decoder", V), source, max_length=6)


@pytest.mark.parametrize(("family", "what"), [("encoder", "fills gaps"), ("classifier", "gives classes")])
def test_what_does_not_write_says_so(family: str, what: str) -> None:
    with pytest.raises(CallError, match=what):
        generate(Classes(), plan(family, C), torch.tensor([[4]]), max_length=3)

"""Modules that run with one number of rows alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import anyformer
from anyformer.core.settings import EvaluateSettings
from anyformer.models.callplan import call_logits, infer_call_plan
from anyformer.models.calls.unusual import rows_named

V, D, ROWS = 40, 16, 6
batch_size = ROWS  # as a script would have it


FIXED = """
import torch
from torch import nn

batch_size = 8


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(300, 24)
        self.rnn = nn.GRU(24, 24, batch_first=True)
        self.head = nn.Linear(24, 300)

    def forward(self, x):
        h = self.rnn(self.embed(x), torch.zeros(1, batch_size, 24))[0]
        return self.head(h)
"""


class Attention(nn.Module):
    def __init__(self, rows: int, places: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(D, D) for _ in range(3))
        self.rows, self.places = rows, places

    def shape(self) -> tuple[int, int, int, int]:
        return self.rows, self.places, 2, D // 2

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        q, k, v = (f(x).view(self.shape()).transpose(1, 2) for f in (self.q, self.k, self.v))
        seen = (q @ k.transpose(-2, -1) / 8**0.5).masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -torch.inf)
        return (seen.softmax(-1) @ v).transpose(1, 2).reshape(self.rows, T, D)


class Decoder(nn.Module):
    """Its batch size stands in its views, its length only where it is given."""

    def __init__(self, rows: int = ROWS, length: int = -1) -> None:
        super().__init__()
        self.batch_size = rows
        self.embed, self.places = nn.Embedding(V, D), nn.Embedding(24, D)
        self.attention = Attention(rows, length)
        self.head = nn.Linear(D, V)
        if length > 0:
            self.block_size = length

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        h = self.embed(x) + self.places(torch.arange(x.shape[1]))
        logits = self.head(h + self.attention(h))
        if targets is None:
            return logits
        return logits, F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


class Pooled(Decoder):
    """Three classes; the number of rows is a global of its file."""

    def __init__(self) -> None:
        super().__init__()
        del self.batch_size
        self.attention.rows = ROWS
        self.head = nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        h = self.embed(x)
        return self.head(self.attention(h).mean(1).view(batch_size, D))


def ids(B: int, T: int, seed: int = 1) -> Tensor:
    return torch.randint(1, V, (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "length"), [(6, -1), (7, -1), (5, 12)])
def test_any_number_of_rows_gets_the_logits_that_the_module_gives_them_among_its_own(rows: int, length: int) -> None:
    module = Decoder(rows, length).eval()
    plan = infer_call_plan(module)
    assert (plan.family, plan.only_rows, plan.embedding_rows) == ("decoder", rows, V)
    assert plan.only_length == (length if length > 0 else None)
    told = {f.name: f for f in plan.findings}
    assert (told["batch size"].verdict, told["batch size"].measured) == ("warn", f"exactly {rows}; others fail")
    assert told["batch"].verdict == told["causality"].verdict == "ok"
    assert "fail" not in [f.verdict for f in plan.findings]
    T = max(length, 12)
    text = ids(2 * rows, T)
    right = torch.cat([module(text[:rows]), module(text[rows:])])
    for B in (1, 2, rows - 1, rows, rows + 1, 2 * rows):
        torch.testing.assert_close(call_logits(module, plan, text[:B]), right[:B])


def test_its_own_loss_is_compared_on_whole_batches() -> None:
    plan = infer_call_plan(Decoder(7))
    assert (plan.targets_arg, {f.name: f.verdict for f in plan.findings}["own loss"]) == ("targets", "ok")


def test_gradients_are_those_of_the_rows_that_were_asked_for() -> None:
    module = Decoder(6)
    plan = infer_call_plan(module)
    text = ids(2, 9)
    call_logits(module, plan, text).logsumexp(-1).sum().backward()
    got = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    module(text.repeat(3, 1))[:2].logsumexp(-1).sum().backward()
    torch.testing.assert_close(got, [p.grad for p in module.parameters() if p.grad is not None])


def test_a_classifier_and_a_global() -> None:
    module = Pooled().eval()
    plan = infer_call_plan(module)
    assert (plan.family, plan.vocab_size, plan.only_rows) == ("classifier", 3, ROWS)
    text = ids(ROWS, 8)
    torch.testing.assert_close(call_logits(module, plan, text[:4]), module(text)[:4])


def test_numbers_that_may_be_those_of_rows() -> None:
    assert rows_named(Pooled(), None) == [ROWS]
    said = RuntimeError("shape '[48, -1, 2, 8]' is invalid for input of size 160")
    assert rows_named(nn.Linear(2, 2), said) == [48]
    met = RuntimeError("The size of tensor a (2) must match the size of tensor b (9) at non-singleton dimension 0")
    assert rows_named(nn.Linear(2, 2), met) == [9]
    assert rows_named(nn.Linear(2, 2), RuntimeError("no such thing")) == []


def test_it_trains_with_fewer_rows_and_is_evaluated_on_all(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    model = tmp_path / "model.py"
    model.write_text(FIXED, encoding="utf-8")
    run = anyformer.train(str(model), text, output_dir=tmp_path, max_steps=6, batch_size=3, max_length=16)
    assert run.adapter.call_plan.only_rows == 8
    again = anyformer.evaluate(run.run_path, settings=EvaluateSettings(batch_size=5))
    assert math.isclose(again.loss, run.results["val_loss"], rel_tol=1e-5)

"""One row of numbers per text by what makes it: hidden states, a sigmoid, a code, or classes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.callplan import infer_call_plan
from anyformer.models.calls.probing import Prober
from anyformer.models.calls.properties import squashed
from anyformer.models.proofs import prove_plan
from anyformer.training.objective import require_trainable
from tests.models.fingerprints import fingerprint

V, D = 40, 16


class Base(nn.Module):
    def __init__(self, C: int = 5, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.emb = nn.Embedding(V, D)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, 2, 24, 0.0, batch_first=True), 1)
        self.rnn = nn.GRU(D, 20, batch_first=True)
        self.classifier = nn.Linear(20, C)
        for p in self.classifier.parameters():
            nn.init.normal_(p, std=0.02)

    def state(self, ids: Tensor) -> Tensor:
        return self.rnn(self.encoder(self.emb(ids)))[0].mean(1)  # type: ignore[no-any-return]


def named(module: nn.Module, name: str) -> list[Finding]:
    return [f for f in infer_call_plan(module).findings if f.name == name]


class Siamese(Base):
    """Two texts, two embeddings; what compares them is outside."""

    def __init__(self) -> None:
        super().__init__()
        del self.rnn, self.classifier

    def once(self, x: Tensor) -> Tensor:
        return self.encoder(self.emb(x)).mean(1)  # type: ignore[no-any-return]

    def forward(self, input1: Tensor, input2: Tensor) -> tuple[Tensor, Tensor]:
        return self.once(input1), self.once(input2)


def test_a_second_text_that_moves_another_output_is_no_unknown_argument() -> None:
    (finding,) = [f for f in named(Siamese(), "argument") if f.verdict == "fail"]
    assert "second text" in finding.reason
    with pytest.raises(CallError, match="input2"):
        require_trainable(infer_call_plan(Siamese()))


class Mean(Base):
    def forward(self, ids: Tensor) -> Tensor:
        return self.encoder(self.emb(ids)).mean(1)  # type: ignore[no-any-return]


class Last(Base):
    def forward(self, ids: Tensor) -> Tensor:
        return self.rnn(self.emb(ids))[1][-1]  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", [Mean, Last])
def test_states_that_no_head_made_are_no_classes(model: type[Base]) -> None:
    module = model(5)
    del module.classifier
    (finding,) = named(module, "classes")
    assert (finding.verdict, "hidden states" in finding.measured) == ("fail", True)


class Pooled(Base):
    """Classes of each position, then their mean."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.classifier(self.rnn(self.encoder(self.emb(ids)))[0]).mean(1)  # type: ignore[no-any-return]


class Classes(Base):
    def forward(self, ids: Tensor) -> Tensor:
        return self.classifier(self.state(ids))  # type: ignore[no-any-return]


class InRange(Base):
    """Small positive logits, by chance."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.classifier(self.state(ids)) + self.classifier.bias.abs() * 0 + 0.3  # type: ignore[no-any-return]


@pytest.mark.parametrize("C", [3, D, 20])
@pytest.mark.parametrize("model", [Pooled, Classes])
def test_a_head_of_any_width_makes_classes(model: type[Base], C: int) -> None:
    assert [f.name for f in infer_call_plan(model(C)).findings if f.verdict in ("warn", "fail")] == []


@pytest.mark.parametrize("seed", range(6))
def test_logits_that_lie_between_0_and_1_by_chance_are_classes(seed: int) -> None:
    module = InRange(4, seed)
    values = module(torch.randint(1, V, (4, 5)))
    assert bool(((values > 0) & (values < 1)).all())
    plan = infer_call_plan(module)
    assert [f.verdict for f in plan.findings if f.name in ("classes", "output")] == []
    assert require_trainable(plan)[0] == "classification"


class Sigmoid(Base):
    def forward(self, ids: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-self.classifier(self.state(ids))))  # type: ignore[no-any-return]


class Code(Base):
    def forward(self, ids: Tensor) -> Tensor:
        return self.classifier(self.state(ids)).tanh()  # type: ignore[no-any-return]


class Bits(Base):
    def forward(self, ids: Tensor) -> Tensor:
        return self.classifier(self.state(ids)).sign()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "verdict", "words"),
    [
        (Sigmoid, "fail", "5 independent labels"),
        (Code, "warn", "between -1 and 1"),
        (Bits, "fail", "that are -1, 0 or 1"),
    ],
)
def test_what_squashes_them_is_proven(model: type[Base], verdict: str, words: str) -> None:
    (finding,) = named(model(), "classes")
    assert finding.verdict == verdict
    assert words in finding.measured


def test_the_weights_that_grew_are_put_back() -> None:
    module = Sigmoid().eval()
    plan = infer_call_plan(module)
    prober = Prober(module)
    prober.sizes = ((2, 5, 3),)
    before = fingerprint(module)
    assert squashed(prober, plan, prober.inputs(plan, 4, 5, 1)) == "sigmoid"
    assert {k: v for k, v in fingerprint(module).items() if v != before[k]}.keys() <= {"random states"}


class Pooler(Base):
    """What BERT gives beside its hidden states: the first, through a Linear and a tanh."""

    def __init__(self) -> None:
        super().__init__()
        del self.rnn, self.classifier
        self.pooler = nn.Linear(D, D)

    def forward(self, ids: Tensor) -> Tensor:
        return self.pooler(self.encoder(self.emb(ids))[:, 0]).tanh()  # type: ignore[no-any-return]


class Linear2(Base):
    """A Linear as wide as the embedding, by a name that says nothing; the blocks' own are called linear2."""

    def __init__(self) -> None:
        super().__init__()
        del self.rnn, self.classifier
        self.last = nn.Linear(D, D)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.encoder(self.emb(ids)).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("model", "words"), [(Pooler, "by a tanh"), (Linear2, "a head is missing")])
def test_one_row_as_wide_as_the_embedding_lacks_a_head_until_the_user_says_otherwise(
    model: type[Base], words: str
) -> None:
    (finding,) = named(model(), "classes")
    assert (finding.verdict, words in finding.reason) == ("fail", True)
    with pytest.raises(CallError, match="a head is missing"):
        require_trainable(infer_call_plan(model()))
    plan = infer_call_plan(model(), overrides={"family": "classifier"})
    require_trainable(plan)
    assert all(f.verdict != "fail" for f in prove_plan(model(), plan))

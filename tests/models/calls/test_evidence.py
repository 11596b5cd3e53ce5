"""What speaks for an encoder, for a decoder, or for neither."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anyformer.models.callplan import infer_call_plan
from anyformer.models.calls.evidence import gather

V, D = 30, 12


class Both(nn.Module):
    """Sees both sides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.out = nn.Embedding(V, D), nn.Linear(D, V)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens)
        return self.out(x + x.mean(1, keepdim=True))  # type: ignore[no-any-return]


class Keeps(Both):
    def __init__(self) -> None:
        super().__init__()
        self.mask_idx = 3


class Reads(Both):
    def forward(self, tokens: Tensor, mask_token_id: int = 3) -> Tensor:
        x = self.emb(tokens).masked_fill((tokens == self.emb.mask_token_id)[..., None], 0.0)  # type: ignore[arg-type]
        return self.out(x + x.mean(1, keepdim=True))  # type: ignore[no-any-return]


def test_the_id_of_a_mask_token_speaks_for_an_encoder() -> None:
    plan = infer_call_plan(Keeps())
    assert plan.family == "encoder"
    assert "mask_idx" in next(f.reason for f in plan.findings if f.name == "family")
    assert gather(Reads()).encoder == ("its mask_token_id",)
    assert not gather(Both()).encoder


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("ESM2", True),
        ("EsmModel", True),
        ("FNet", True),
        ("RoFormer", True),
        ("Longformer", True),
        ("BigBird", True),
        ("ErnieModel", True),
        ("MPNet", True),
        ("Seq2SeqAutoEncoder", False),
        ("TextAutoencoder", False),
        ("AutoEncoderEncoder", False),
        ("SentenceVAE", False),
        ("DiffusionEncoder", False),
        ("LLaDA", False),
        ("TextEncoder", True),
        ("Resemble", False),
    ],
)
def test_names(name: str, encoder: bool) -> None:
    assert gather(type(name, (Both,), {})()).says_encoder == encoder
    masked = gather(type(name, (Keeps,), {})())
    assert masked.says_encoder == (not masked.neither)


def test_an_autoencoder_is_not_trained_as_an_encoder_on_its_own() -> None:
    plan = infer_call_plan(type("SequenceAutoEncoder", (Both,), {})())
    assert plan.family == "decoder"
    (finding,) = [f for f in plan.findings if f.name == "causality"]
    assert finding.verdict == "fail"
    assert "SequenceAutoEncoder" in finding.reason
    assert "--objective masked" not in finding.reason


class Before(nn.Module):
    """Sees what came before, under the names that are given."""

    def __init__(self, head: str = "out") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(V, D)
        self.add_module(head, nn.Linear(D, V))
        self.head = head

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens)
        return getattr(self, self.head)(x + x.cumsum(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "head", "blocked"),
    [
        ("BertModel", "mlm_head", True),
        ("BertModel", "out", False),  # one sign is not enough
        ("Before", "mlm_head", False),
        ("CausalBert", "mlm_head", False),
        ("BertDecoder", "mlm_head", False),
    ],
)
def test_a_masked_language_model_that_sees_no_later_token_is_told_of(name: str, head: str, blocked: bool) -> None:
    module = type(name, (Before,), {})(head)
    told = [f for f in infer_call_plan(module).findings if f.name == "family" and f.verdict == "fail"]
    assert [("masked language modelling: class " + name in f.measured) for f in told] == [True] * blocked
    if blocked:
        for objective, family in (("causal", "decoder"), ("masked", "encoder")):
            plan = infer_call_plan(module, objective=objective)
            assert plan.family == family
            assert not [f for f in plan.findings if f.verdict == "fail"]

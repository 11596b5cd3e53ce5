"""Padding that attention passes over. B batch, T time, C classes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.models.callplan import call_logits, infer_call_plan

V, C = 29, 3


class PooledOver(nn.Module):
    """Attention is told of padding by torch's mask; the maximum over all positions is not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(V, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.classifier = nn.Linear(16, C)

    def forward(self, text: Tensor, pad_mask: Tensor) -> Tensor:
        return self.classifier(self.encoder(self.embedding(text), src_key_padding_mask=pad_mask.bool()).amax(1))


class ByHand(PooledOver):
    """The same of a softmax of its own, 1 = keep."""

    def forward(self, text: Tensor, pad_mask: Tensor) -> Tensor:
        x = self.embedding(text)
        scores = (x @ x.transpose(1, 2)).masked_fill(pad_mask[:, None] == 0, -1e9)
        return self.classifier((x + scores.softmax(-1) @ x).amax(1))


class OfTheFunction(PooledOver):
    def forward(self, text: Tensor, pad_mask: Tensor) -> Tensor:
        x = self.embedding(text)
        return self.classifier((x + F.scaled_dot_product_attention(x, x, x, pad_mask[:, None, :].bool())).amax(1))


class Scales(PooledOver):
    """No attention is told of it: what it means, nothing shows."""

    def forward(self, text: Tensor, pad_mask: Tensor) -> Tensor:
        return self.classifier((self.encoder(self.embedding(text)) + pad_mask[..., None] * 0.1).amax(1))


class FarBelow(PooledOver):
    """A float mask far below zero, as Hugging Face's models make it: -inf of ours would leave nothing of the scores."""

    def forward(self, text: Tensor, pad_mask: Tensor) -> Tensor:
        x = self.embedding(text)
        bias = (1.0 - pad_mask[:, None, :].float()) * torch.finfo(torch.float32).min
        return self.classifier((x + F.scaled_dot_product_attention(x, x, x, bias)).amax(1))


FORMS = [(PooledOver, "masked"), (ByHand, "keep"), (OfTheFunction, "keep"), (FarBelow, "keep")]


@pytest.mark.parametrize(("model", "form"), FORMS)
def test_a_mask_that_attention_obeys_is_known_by_that(model: type[PooledOver], form: str) -> None:
    module = model().eval()
    plan = infer_call_plan(module)
    found = next(f for f in plan.findings if f.name == "mask")
    assert (found.verdict, plan.mask_form, plan.family) == ("warn", form, "classifier")
    ids = torch.randint(0, V, (3, 6), generator=torch.Generator().manual_seed(1))
    keep = (torch.arange(6) < torch.tensor([6, 4, 3])[:, None]).long()
    right = module(ids, keep == 0 if form == "masked" else keep)
    torch.testing.assert_close(call_logits(module, plan, ids, keep), right)


class Disagrees(PooledOver):
    """Two attentions take the mask for opposite things: which is meant, nothing tells."""

    def forward(self, text: Tensor, pad_mask: Tensor) -> Tensor:
        x = self.embedding(text)
        scores, keep = x @ x.transpose(1, 2), pad_mask[:, None] != 0
        first = scores.masked_fill(~keep, -1e4).softmax(-1) @ x
        return self.classifier((x + first + scores.masked_fill(keep, -1e4).softmax(-1) @ x).amax(1))


def test_attentions_that_disagree_stay_a_guess() -> None:
    assert next(f for f in infer_call_plan(Disagrees()).findings if f.name == "mask").verdict == "fail"


def test_a_mask_that_no_attention_obeys_stays_a_guess() -> None:
    plan = infer_call_plan(Scales())
    assert next(f for f in plan.findings if f.name == "mask").verdict == "fail"


class OfAnAspect(PooledOver):
    """Attention is told in the same way which words are an aspect's: nobody knows them."""

    def forward(self, text: Tensor, aspect_mask: Tensor) -> Tensor:
        x = self.embedding(text)
        seen = (x @ x.transpose(1, 2)).masked_fill(aspect_mask[:, None] == 0, -1e9).softmax(-1) @ x
        return self.classifier(torch.cat([x[..., :8], seen[..., :8]], -1).amax(1))


def test_a_mask_of_something_else_stays_a_guess() -> None:
    plan = infer_call_plan(OfAnAspect())
    assert next(f for f in plan.findings if f.name == "mask").verdict == "fail"


class FourAxes(nn.Module):
    """attention_mask (B, T) is given two axes inside; a causal one (1, 1, T, T) would run as well, to no sense."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pool = pool
        self.embedding, self.places = nn.Embedding(V, 16), nn.Embedding(64, 16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.fc = nn.Linear(16, C)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        B, T = input_ids.shape
        x = self.embedding(input_ids) + self.places(torch.arange(T))
        q, k, v = (part.view(B, T, 4, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = (q @ k.transpose(-2, -1)).masked_fill(attention_mask[:, None, None, :] == 0, -1e9)
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).contiguous().view(B, T, 16))
        return self.fc(x[:, 0] if self.pool == "first" else x.amax(1))


@pytest.mark.parametrize("pool", ["first", "all"])
def test_a_mask_of_padding_is_not_taken_for_one_of_the_future(pool: str) -> None:
    module = FourAxes(pool).eval()
    plan = infer_call_plan(module)
    assert (plan.mask_arg, plan.mask_shape, plan.mask_form) == ("attention_mask", "BT", "keep")
    assert not [f for f in plan.findings if f.verdict == "fail"]
    ids = torch.randint(0, V, (3, 6), generator=torch.Generator().manual_seed(1))
    keep = (torch.arange(6) < torch.tensor([6, 4, 3])[:, None]).long()
    torch.testing.assert_close(call_logits(module, plan, ids, keep), module(ids, keep))


class Counts(FourAxes):
    """``pads`` (B,): how many tokens at the end are padding. A causal mask of three axes runs, to no sense."""

    def forward(self, input_ids: Tensor, pads: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input_ids, torch.arange(input_ids.shape[1]) < (input_ids.shape[1] - pads)[:, None])


def test_counts_of_padding_are_no_mask_of_the_future() -> None:
    assert any(f.verdict == "fail" for f in infer_call_plan(Counts("first")).findings)


class Inverted(nn.Module):
    """Causal by itself; required pad_mask, 1 = padding: of the other polarity all keys are hidden, and none is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.places = nn.Embedding(V, 16), nn.Embedding(64, 16)
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, V)

    def forward(self, idx: Tensor, pad_mask: Tensor) -> Tensor:
        T = idx.shape[1]
        x = self.embedding(idx) + self.places(torch.arange(T))
        q, k, v = self.qkv(x).chunk(3, -1)
        seen = torch.ones(T, T, dtype=torch.bool).tril() & ~pad_mask[:, None].bool()
        return self.head(x + (q @ k.transpose(1, 2)).masked_fill(~seen, -1e9).softmax(-1) @ v)


def test_the_polarity_that_stays_causal() -> None:
    module = Inverted().eval()
    plan = infer_call_plan(module)
    assert (plan.family, plan.causal, plan.mask_form) == ("decoder", True, "masked")
    assert not [f for f in plan.findings if f.verdict == "fail"]
    ids = torch.randint(0, V, (2, 6), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(call_logits(module, plan, ids), module(ids, torch.zeros(2, 6)))


class LooksBack(FourAxes):
    """The last token's row, under a mask of the future that its caller makes."""

    def forward(self, input_ids: Tensor, causal_mask: Tensor) -> Tensor:  # type: ignore[override]
        B, T = input_ids.shape
        x = self.embedding(input_ids) + self.places(torch.arange(T))
        q, k, v = (part.view(B, T, 4, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = (q @ k.transpose(-2, -1)).masked_fill(causal_mask == 0, -1e9)
        return self.fc((x + (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, 16))[:, -1])


class LooksBackInside(PooledOver):
    """The same by torch's encoder: True where it may not look."""

    def forward(self, text: Tensor, causal_mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.classifier(self.encoder(self.embedding(text), mask=causal_mask)[:, -1])


@pytest.mark.parametrize(("stated", "name"), [(None, "causal_mask"), ("causal_mask", "causal_mask")])
def test_a_classifiers_mask_of_the_future_is_known_by_what_attention_sees(stated: str | None, name: str) -> None:
    ids = torch.randint(0, V, (3, 6), generator=torch.Generator().manual_seed(1))
    said = None if stated is None else {"arguments": {name: stated}}
    past = torch.ones(6, 6).tril()
    for module, right in ((LooksBack("first").eval(), past), (LooksBackInside().eval(), past == 0)):
        plan = infer_call_plan(module, overrides=said)
        assert next(f for f in plan.findings if f.name == "causal mask").verdict == "ok"
        torch.testing.assert_close(call_logits(module, plan, ids), module(ids, right))


class LooksAhead(LooksBack):
    def forward(self, input_ids: Tensor, look_ahead_mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input_ids, look_ahead_mask)


def test_a_look_ahead_mask_of_a_classifier_is_causal() -> None:
    plan = infer_call_plan(LooksAhead("first"))
    assert [(a.name, a.role, a.form) for a in plan.extras] == [("look_ahead_mask", "causal_mask", "keep")]


class OfNoUse(PooledOver):
    def forward(self, text: Tensor, causal_mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.classifier((self.encoder(self.embedding(text)) * (1 + causal_mask.sum())).amax(1))


def test_a_mask_of_the_future_that_no_attention_takes_is_a_failure() -> None:
    assert any(f.verdict == "fail" for f in infer_call_plan(OfNoUse()).findings if f.name == "causal mask")


class OfTheHeads(nn.Module):
    """A mask (B, T) lands on the axis of the heads: it fits where there are as many of them as rows."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = heads
        self.embedding, self.mixed, self.mlm_head = nn.Embedding(V, 12), nn.Linear(12, 36), nn.Linear(12, V)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        h = self.embedding(x)
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in self.mixed(h).chunk(3, -1))
        scores = q @ k.transpose(-1, -2)
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[:, None] == 0, float("-inf"))
        return self.mlm_head(h + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("heads", [2, 3, 4])
def test_a_mask_that_fits_the_heads_by_chance_is_not_that_of_its_rows(heads: int) -> None:
    module = OfTheHeads(heads).eval()
    plan = infer_call_plan(module)
    assert (plan.mask_arg, plan.mask_shape) == ("attention_mask", "B1T")
    ids = torch.randint(1, V, (5, 7))
    keep = torch.arange(7) < torch.tensor([7, 3, 5, 2, 6])[:, None]
    together = call_logits(module, plan, ids, keep.long())
    for row, length in enumerate(keep.sum(1).tolist()):
        alone = module(ids[row : row + 1, :length])
        torch.testing.assert_close(together[row, :length], alone[0], rtol=0, atol=1e-5)


class OfTheFirstRow(OfTheHeads):
    """What the first row's mask hides is hidden in all."""

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        h = self.embedding(x)
        scores = h @ h.transpose(1, 2)
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[:1, None] == 0, -1e9)
        return self.mlm_head(h + scores.softmax(-1) @ h)


def test_a_mask_of_one_row_for_all_is_no_padding_mask() -> None:
    assert infer_call_plan(OfTheFirstRow(2).eval()).mask_arg is None

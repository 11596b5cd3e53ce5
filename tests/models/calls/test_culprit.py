"""What lets the future through, or keeps the past out, is named, with the ways on that fit it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anyformer.core.errors import CallError
from anyformer.models.callplan import infer_call_plan
from anyformer.training.objective import require_trainable

V, D = 40, 12


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tok, self.head = nn.Embedding(V, D), nn.Linear(D, V)


class BothWays(Base):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(D, D // 2, batch_first=True, bidirectional=True)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.tok(ids))[0])  # type: ignore[no-any-return]


class Centred(Base):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(D, D, 3, padding=1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.conv(self.tok(ids).transpose(1, 2)).transpose(1, 2))  # type: ignore[no-any-return]


class Normed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, D)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.tok(ids).transpose(1, 2)).transpose(1, 2))  # type: ignore[no-any-return]


class Switched(Base):
    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(D, 2, batch_first=True)
        self.causal = causal

    def forward(self, ids: Tensor) -> Tensor:
        x, T = self.tok(ids), ids.shape[1]
        mask = torch.ones(T, T, dtype=torch.bool).triu(1) if self.causal else None
        return self.head(x + self.attn(x, x, x, attn_mask=mask)[0])  # type: ignore[no-any-return]


class TextAutoEncoder(Base):
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = nn.GRU(D, D, batch_first=True), nn.GRU(D, D, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok(ids)
        return self.head(self.dec(x, self.enc(x)[1])[0])  # type: ignore[no-any-return]


class Little(Base):
    """Numbers as large as those of other tokens leak less than they rule."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok(ids)
        return self.head(x + x.cumsum(1) + 1e-4 * x.flip(1))  # type: ignore[no-any-return]


MASKED, CAUSAL, REPAIR = "--objective masked", "--objective causal", "anyformer repair"


@pytest.mark.parametrize(
    ("model", "words", "ways", "not_ways"),
    [
        (BothWays, "lstm (LSTM) reads from the end, too: bidirectional=False", (MASKED, CAUSAL), REPAIR),
        (Centred, "conv (Conv1d) sees tokens ahead of its own: pad 2 on the left alone", (MASKED, CAUSAL), REPAIR),
        (Normed, "norm (GroupNorm) takes its mean over all of time: nn.LayerNorm", (MASKED, CAUSAL), REPAIR),
        (Switched, 'switch: {"causal": true} in config.json', (MASKED, CAUSAL, REPAIR), "none"),
        (TextAutoEncoder, "into dec (GRU) goes what was computed from the whole text", (CAUSAL,), MASKED),
    ],
)
def test_what_leaks_is_named(model: type[Base], words: str, ways: tuple[str, ...], not_ways: str) -> None:
    plan = infer_call_plan(model())
    assert plan.family == "decoder"
    with pytest.raises(CallError, match="sees the future") as caught:
        require_trainable(plan)
    assert words in caught.value.detail
    assert all(way in caught.value.fix for way in ways)
    assert not_ways not in caught.value.fix
    insisted = infer_call_plan(model(), objective="causal")
    assert require_trainable(insisted, "causal")[0] == "causal"


def test_the_switch_that_is_named_makes_it_causal() -> None:
    assert infer_call_plan(Switched(causal=True)).causal


def test_a_little_of_the_future_is_no_copy() -> None:
    with pytest.raises(CallError) as caught:
        require_trainable(infer_call_plan(Little()))
    assert "a little" in str(caught.value)
    assert "copy" not in str(caught.value)
    assert "logits of about" in caught.value.detail


class AmongHeads(nn.Module):
    """Queries stay (B, T, H, K): the heads of one token attend to each other, and no token to another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.tokens, self.qkv, self.head = nn.Embedding(30, 16), nn.Linear(16, 48), nn.Linear(16, 30)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        q, k, v = self.qkv(x).view(*ids.shape, 4, 12).chunk(3, -1)
        if self.how == "fused":
            x = x + functional.scaled_dot_product_attention(q, k, v).flatten(2)
        elif self.how == "written":
            x = x + (q @ k.transpose(-2, -1)).softmax(-1).matmul(v).flatten(2)
        elif self.how == "gated":
            x = x * (q * k * v).flatten(2).sigmoid()
        return functional.linear(x, self.tokens.weight)


@pytest.mark.parametrize("how", ["fused", "written"])
def test_attention_that_reads_no_other_token_is_a_failure(how: str) -> None:
    plan = infer_call_plan(AmongHeads(how))
    assert [f.verdict for f in plan.findings if f.name == "past"] == ["fail"]
    with pytest.raises(CallError, match="heads attend to each other"):
        require_trainable(plan)
    insisted = infer_call_plan(AmongHeads(how), objective="causal")
    assert [f.verdict for f in insisted.findings if f.name == "past"] == ["warn"]
    assert require_trainable(insisted, "causal")[0] == "causal"


class Experts(nn.Module):
    """A mixture for each token: products of gates and experts are no attention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.gate, self.head = nn.Embedding(30, 16), nn.Linear(16, 4), nn.Linear(16, 30)
        self.experts = nn.Parameter(torch.randn(4, 16, 16) / 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        mixed = torch.einsum("btd,edf->btef", x, self.experts)
        return self.head(torch.einsum("bte,btef->btf", self.gate(x).softmax(-1), mixed))  # type: ignore[no-any-return]


def test_a_mixture_of_experts_of_single_tokens_is_no_attention() -> None:
    plan = infer_call_plan(Experts())
    assert [f.verdict for f in plan.findings if f.name == "past"] == ["warn"]


def test_a_model_of_token_pairs_that_attends_nowhere_trains_with_a_warning() -> None:
    plan = infer_call_plan(AmongHeads("gated"))
    assert [f.verdict for f in plan.findings if f.name == "past"] == ["warn"]
    assert require_trainable(plan)[0] == "causal"


class Mix(nn.Module):
    """Attention that no name tells of: it hides where it finds a 0."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(D, 3 * D)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return (q @ k.transpose(1, 2)).masked_fill(mask == 0, -1e9).softmax(-1) @ v


class GptTurned(Base):
    """0 and −inf for an attention that hides where it finds a 0: what comes later is all that is left."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()

    def forward(self, ids: Tensor) -> Tensor:
        x, T = self.tok(ids), ids.shape[1]
        mask = torch.zeros(T, T).masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), float("-inf"))
        return self.head(x + self.mix(x, mask))  # type: ignore[no-any-return]


def test_a_mask_that_is_the_wrong_way_round_is_not_said_to_be_missing() -> None:
    """Nor is the other objective a way out: half of the text would be hidden from it, too."""
    with pytest.raises(CallError) as raised:
        require_trainable(infer_call_plan(GptTurned()))
    assert "in mix (Mix) each position sees later ones: its mask is the wrong way round" in str(raised.value)
    assert "repair" not in str(raised.value)
    assert "--objective masked" not in str(raised.value)
    with pytest.raises(CallError, match="a causal mask is missing"):
        require_trainable(infer_call_plan(Switched()))

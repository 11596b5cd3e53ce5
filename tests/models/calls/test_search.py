"""Where the search for a call ends, and what only looks like logits. B batch, T time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.core.errors import CallError, SettingsError
from anyformer.models.callplan import call_logits, infer_call_plan
from anyformer.models.calls.probing import Prober
from anyformer.training.effective import choose_max_length
from anyformer.training.objective import require_trainable


class Latents(nn.Module):
    """65 rows of 64 numbers of any text: at T = 64 they have the shape (B, V, T)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.seq_len = 64
        self.tokens, self.rows = nn.Embedding(64, 64), nn.Linear(64, 65 * 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(self.tokens(x).mean(1)).view(-1, 65, 64)  # type: ignore[no-any-return]


def test_a_shape_that_fits_at_one_length_by_chance_is_no_place_of_logits() -> None:
    with pytest.raises(CallError, match="no way to call Latents"):
        infer_call_plan(Latents())


class Picky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 4)

    def forward(self, ids: Tensor, a: Tensor, b: Tensor) -> Tensor:
        raise ValueError(f"not these: {self.tokens(ids).shape}")


def test_a_search_that_takes_too_long_ends_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(Prober, "seconds", lambda self: calls.append(self.calls) or (0.0 if self.calls < 10 else 99.0))
    with pytest.raises(CallError, match=r"ended after 30 s: \d+ calls were tried"):
        infer_call_plan(Picky())
    assert max(calls) < 20


def test_without_the_deadline_all_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prober, "seconds", lambda self: 0.0)
    with pytest.raises(CallError) as caught:
        infer_call_plan(Picky())
    assert "ended after" not in caught.value.detail


class Whole(nn.Module):
    """Adds the positions of its whole length to every batch, as models do that are written for one length."""

    def __init__(self, outputs: int, *, pool: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block_size, self.pool = 20, pool
        self.tokens, self.places = nn.Embedding(50, 16), nn.Embedding(20, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True)
        self.classifier = nn.Linear(16, outputs)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.encoder(self.tokens(ids) + self.places(torch.arange(20)))
        return self.classifier(x[:, 0] if self.pool else x)  # type: ignore[no-any-return]


def test_a_model_of_one_length_is_planned_and_trained_at_it() -> None:
    plan = infer_call_plan(Whole(50, pool=False), objective="masked")
    assert (plan.family, plan.max_positions, plan.only_length) == ("encoder", 20, 20)
    require_trainable(plan)
    assert choose_max_length(None, plan)[0] == choose_max_length(20, plan)[0] == 20
    with pytest.raises(SettingsError, match="runs at T = 20 alone"):
        choose_max_length(10, plan)


def test_a_classifier_of_one_length_is_found_and_told() -> None:
    plan = infer_call_plan(Whole(3, pool=True))
    assert (plan.family, plan.vocab_size, plan.only_length) == ("classifier", 3, 20)
    require_trainable(plan)
    told = next(f for f in plan.findings if f.name == "positions")
    assert (told.verdict, told.measured) == ("warn", "exactly 20; others fail")


class Table(nn.Module):
    """Adds a whole table of places, which is a plain tensor or one that nothing names, to what comes in."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.mlm_head = nn.Embedding(50, 16), nn.Linear(16, 50)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True)
        self.name = name
        setattr(self, name, torch.randn(1, 23, 16))

    def forward(self, ids: Tensor) -> Tensor:
        return self.mlm_head(self.encoder(self.tokens(ids) + getattr(self, self.name)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["pe", "table"])
def test_a_length_that_only_a_tensor_or_an_error_tells_is_found(name: str) -> None:
    assert infer_call_plan(Table(name), objective="masked").only_length == 23


class DropsLast(nn.Module):
    """Time first; takes the whole target and drops its last token inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.source, self.target = nn.Embedding(40, 16), nn.Embedding(40, 16)
        self.layers = nn.Transformer(16, 2, 1, 1, 32, 0.0)
        self.head = nn.Linear(16, 40)

    def forward(self, src: Tensor, tgt: Tensor) -> tuple[Tensor, None]:
        read = self.target(tgt[:-1])
        past = torch.ones(len(read), len(read), dtype=torch.bool).triu(1)
        return self.head(self.layers(self.source(src), read, tgt_mask=past)).log_softmax(-1), None


def test_a_target_that_is_shortened_inside_is_told_from_the_batch() -> None:
    plan = infer_call_plan(DropsLast())
    assert (plan.family, plan.layout, plan.alignment, plan.time_first) == ("encoder_decoder", "TBV", "short", True)


class Classes(nn.Module):
    """Logits of classes beside the hidden states of every token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e, self.layer = nn.Embedding(40, 16), nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.fc = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        h = self.layer(self.e(input_ids))
        return {"logits": self.fc(h.mean(1)), "hidden_states": h}


def test_logits_of_classes_come_before_hidden_states() -> None:
    plan = infer_call_plan(Classes())
    assert (plan.family, plan.logits_path, plan.vocab_size) == ("classifier", ("logits",), 3)


class DecoderAlone(nn.Module):
    """Built without its encoder: what the encoder reads may be left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e, self.layer = nn.Embedding(40, 16), nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.head = nn.Linear(16, 40)

    def forward(self, dec_in: Tensor, enc_in: Tensor | None = None, enc_mask: Tensor | None = None) -> Tensor:
        past = torch.ones(dec_in.shape[1], dec_in.shape[1], dtype=torch.bool).triu(1)
        logits: Tensor = self.head(self.layer(self.e(dec_in), src_mask=past))
        return logits


def test_a_decoder_whose_encoder_is_left_out_is_a_decoder() -> None:
    plan = infer_call_plan(DecoderAlone())
    assert (plan.family, plan.token_arg, plan.causal) == ("decoder", "dec_in", True)


class NeedsBoth(nn.Module):
    """BERT's arguments with defaults of None that its forward cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.types = nn.Embedding(30, 16), nn.Embedding(2, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlm_head = nn.Linear(16, 30)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        h = self.words(input_ids) + self.types(token_type_ids)  # type: ignore[arg-type]
        hidden = attention_mask.float() == 0  # type: ignore[union-attr]
        return self.mlm_head(h + self.attention(h, h, h, key_padding_mask=hidden, need_weights=False)[0])  # type: ignore[no-any-return]


def test_defaults_of_none_that_forward_cannot_take_are_given() -> None:
    torch.manual_seed(0)
    module = NeedsBoth()
    plan = infer_call_plan(module)
    assert (plan.mask_arg, plan.mask_shape, plan.mask_form, plan.needs_mask) == ("attention_mask", "BT", "keep", True)
    assert [(a.name, a.role) for a in plan.extras] == [("token_type_ids", "segments")]
    ids, mask = torch.randint(0, 30, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    given = call_logits(module.eval(), plan, ids, attention_mask=mask)
    assert torch.allclose(given, module(ids, torch.zeros_like(ids), mask), atol=1e-6)
    assert not torch.allclose(given[1], module(ids, torch.zeros_like(ids), torch.ones_like(ids))[1], atol=1e-3)


class DropsAlways(nn.Module):
    """Attention that drops out in eval mode, too, and takes its causal mask from the caller, 1 = keep."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.positions = nn.Embedding(30, 16), nn.Embedding(64, 16)
        self.q, self.k, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 30)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.e(x) + self.positions(torch.arange(x.shape[1]))
        seen = nn.functional.scaled_dot_product_attention(self.q(h), self.k(h), h, attn_mask=mask.bool(), dropout_p=0.1)
        return self.head(h + seen)  # type: ignore[no-any-return]


def test_a_mask_is_found_for_a_model_that_drops_out_in_eval_mode() -> None:
    torch.manual_seed(0)
    plan = infer_call_plan(DropsAlways())
    assert [(a.role, a.form) for a in plan.extras] == [("causal_mask", "keep")]
    assert plan.causal
    assert next(f.verdict for f in plan.findings if f.name == "repeat") == "warn"


@pytest.mark.parametrize("shape", ["B, T, T", "B, 1, T, T"])
def test_a_square_mask_that_could_be_of_padding_is_tried_as_causal(shape: str) -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.e, self.mix, self.out = nn.Embedding(50, 16), nn.Linear(16, 48), nn.Linear(16, 50)

        def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
            B, T = tokens.shape
            if attention_mask.shape != ((B, T, T) if shape == "B, T, T" else (B, 1, T, T)):
                raise ValueError(f"a mask of {tuple(attention_mask.shape)}")
            x = self.e(tokens)
            q, k, v = (part[:, None] for part in self.mix(x).chunk(3, -1))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask.view(B, 1, T, T))
            return self.out(x + y[:, 0])  # type: ignore[no-any-return]

    module = Given().eval()
    plan = infer_call_plan(module)
    assert plan.causal
    told = next(f for f in plan.findings if f.name == "causal mask")
    assert (told.verdict, told.measured) == ("ok", f"attention_mask ({shape}) bool, 1 = keep, causal")
    ids = torch.randint(0, 50, (2, 7))
    mask = torch.ones(2, 7, 7, dtype=torch.bool).tril()
    right = module(ids, mask if shape == "B, T, T" else mask[:, None])
    torch.testing.assert_close(call_logits(module, plan, ids), right)


class OneRowByChance(nn.Module):
    """Positions (T, 1, D) added to (B, T, D): one row alone becomes T of them, of which the first token is taken."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(40, 8), nn.Linear(8, outputs)
        self.register_buffer("positions", torch.randn(64, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions[: x.size(1)]  # type: ignore[index]
        return self.head(h[:, 0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("outputs", [2, 40])
def test_what_came_about_by_chance_with_one_row_does_not_hide_why_two_fail(outputs: int) -> None:
    with pytest.raises(CallError, match=r"ids \(2, 5\)(?s:.*)self.positions(?s:.*)size of tensor a \(2\)"):
        infer_call_plan(OneRowByChance(outputs))


class ScoresSamples(nn.Module):
    """A recommender whose forward is its loss, of the next items and of sampled ones."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.mix = nn.Embedding(50, 8, padding_idx=0), nn.GRU(8, 8, batch_first=True)

    def forward(self, log_seqs: Tensor, pos_seqs: Tensor, neg_seqs: Tensor) -> Tensor:
        h, _ = self.mix(self.items(log_seqs))
        gap = (h * self.items(pos_seqs)).sum(-1) - (h * self.items(neg_seqs)).sum(-1)
        return -F.logsigmoid(gap).mean()


def test_a_recommender_that_scores_samples_is_told_in_one_line() -> None:
    with pytest.raises(CallError, match=r"scores items that it is given \(neg_seqs: sampled ones\)") as raised:
        infer_call_plan(ScoresSamples())
    assert "anyformer.yaml" not in str(raised.value)


def test_segments_of_a_model_of_one_length_are_not_its_tokens() -> None:
    class BertMLM(nn.Module):
        """Its positions are those of its own length: no other runs."""

        def __init__(self) -> None:
            super().__init__()
            self.seq_len = 24
            self.tok, self.pos, self.seg = nn.Embedding(60, 16), nn.Embedding(24, 16), nn.Embedding(2, 16)
            self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
            self.fc = nn.Linear(16, 60)

        def forward(self, x: Tensor, segment_embedding: Tensor) -> Tensor:
            places = torch.arange(self.seq_len).unsqueeze(0).expand(x.size())
            return self.fc(self.layer(self.tok(x) + self.pos(places) + self.seg(segment_embedding)))

    plan = infer_call_plan(BertMLM().eval())
    assert (plan.token_arg, plan.family, plan.only_length, plan.embedding_rows) == ("x", "encoder", 24, 60)
    assert [(a.name, a.role) for a in plan.extras] == [("segment_embedding", "segments")]
    assert not [f for f in plan.findings if f.verdict == "fail"]

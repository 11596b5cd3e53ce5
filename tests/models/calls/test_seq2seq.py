"""Two sequences under any names, by what the module does with them. B batch, T time (source), S time (target)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.models.callplan import CallPlan, call_logits, infer_call_plan
from anyformer.models.calls.probing import Prober
from anyformer.models.calls.seq2seq import source_finding
from anyformer.training.objective import require_trainable


class Core(nn.Module):
    """A causal GRU over the target that starts from a summary of the source."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.write = nn.Embedding(31, 24), nn.Embedding(29, 24)
        self.reader, self.writer = nn.GRU(24, 24, batch_first=True), nn.GRU(24, 24, batch_first=True)
        self.head = nn.Linear(24, 29)

    def both(self, source: Tensor, target: Tensor) -> Tensor:
        states, _ = self.reader(self.read(source))
        logits: Tensor = self.head(self.writer(self.write(target), states.mean(1)[None])[0])
        return logits


class Tar(Core):
    def forward(self, src_input: Tensor, tar_input: Tensor) -> Tensor:
        return self.both(src_input, tar_input)


class CamelCase(Core):
    def forward(self, srcTokens: Tensor, trgTokens: Tensor) -> Tensor:
        return self.both(srcTokens, trgTokens)


class NoNames(Core):
    def forward(self, article: Tensor, summary: Tensor) -> Tensor:
        return self.both(article, summary)


class TargetFirst(Core):
    def forward(self, summary: Tensor, article: Tensor) -> Tensor:
        return self.both(article, summary)


class Optional(Core):
    def forward(self, encoder_tokens: Tensor | None = None, decoder_tokens: Tensor | None = None) -> dict[str, Tensor]:
        assert encoder_tokens is not None
        states, _ = self.reader(self.read(encoder_tokens))
        out = {"encoder_output": states}
        if decoder_tokens is not None:
            out["decoder_output"] = self.both(encoder_tokens, decoder_tokens)
        return out


def planned(model: nn.Module) -> CallPlan:
    plan = infer_call_plan(model)
    assert require_trainable(plan)[0] == "seq2seq"
    return plan


@pytest.mark.parametrize(
    ("model", "source", "target"),
    [
        (Tar, "src_input", "tar_input"),
        (CamelCase, "srcTokens", "trgTokens"),
        (NoNames, "article", "summary"),
        (TargetFirst, "article", "summary"),
        (Optional, "encoder_tokens", "decoder_tokens"),
    ],
)
def test_source_and_target_are_found_whatever_their_names(model: type[Core], source: str, target: str) -> None:
    module = model().eval()
    plan = planned(module)
    assert (plan.family, plan.token_arg, plan.target_arg) == ("encoder_decoder", source, target)
    src, tgt = torch.randint(1, 31, (3, 6)), torch.randint(1, 29, (3, 4))
    with torch.no_grad():
        torch.testing.assert_close(call_logits(module, plan, src, target_ids=tgt), module.both(src, tgt))


class Masks(Core):
    """The masks of the TensorFlow tutorial: 1 = masked, one for each attention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.place = nn.Parameter(torch.randn(64, 24))
        del self.reader, self.writer

    def attend(self, q: Tensor, kv: Tensor, mask: Tensor) -> Tensor:
        scores = (q @ kv.mT)[:, None] / 5 + mask * -1e9
        return q + (scores.softmax(-1) @ kv[:, None])[:, 0]

    def forward(
        self, inp: Tensor, tar: Tensor, enc_padding_mask: Tensor, look_ahead_mask: Tensor, dec_padding_mask: Tensor
    ) -> Tensor:
        x = self.read(inp) + self.place[: inp.size(1)]
        x = self.attend(x, x, enc_padding_mask)
        y = self.write(tar) + self.place[: tar.size(1)]
        logits: Tensor = self.head(self.attend(self.attend(y, y, look_ahead_mask), x, dec_padding_mask))
        return logits


def test_the_decoders_padding_mask_may_be_of_the_source() -> None:
    module = Masks().eval()
    plan = planned(module)
    assert plan.mask_arg == "enc_padding_mask"
    assert {a.name: a.role for a in plan.extras} == {
        "look_ahead_mask": "target_causal_mask",
        "dec_padding_mask": "memory_mask",
    }
    src, tgt, keep = torch.randint(1, 31, (2, 6)), torch.randint(1, 29, (2, 4)), torch.ones(2, 6, dtype=torch.int64)
    keep[0, 4:] = 0
    hidden, future = (keep == 0)[:, None, None].float(), torch.ones(4, 4).triu(1)
    with torch.no_grad():
        got = call_logits(module, plan, src, keep, target_ids=tgt)
        torch.testing.assert_close(got, module(src, tgt, hidden, future, hidden))


class Swapped(Core):
    """Lengths whose names say nothing of whose they are."""

    def forward(self, article: Tensor, summary: Tensor, a_len: Tensor, b_len: Tensor) -> Tensor:
        shown = (torch.arange(article.size(1)) < b_len[:, None])[:, :, None]
        states = (self.reader(self.read(article))[0] * shown).sum(1) / b_len[:, None]
        told = (torch.arange(summary.size(1)) < a_len[:, None])[:, :, None]
        logits: Tensor = self.head(self.writer(self.write(summary) * told, states[None])[0])
        return logits


def test_whose_lengths_they_are_is_measured() -> None:
    plan = planned(Swapped())
    assert {a.name: a.role for a in plan.extras} == {"a_len": "target_lengths", "b_len": "lengths"}


class HidesZero(nn.Module):
    """Padding is id 0, hidden by forward itself: a target that begins with it sees nothing, which gives NaN."""

    def __init__(self, *, leaks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.leaks, self.emb, self.fc = leaks, nn.Embedding(21, 16), nn.Linear(16, 21)
        self.core = nn.Transformer(16, 2, 1, 1, 24, 0.0, batch_first=True)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        future = torch.triu(torch.ones(tgt.shape[1], tgt.shape[1], dtype=torch.bool), 1 + self.leaks)
        hidden = {"src_key_padding_mask": src == 0, "tgt_key_padding_mask": tgt == 0}
        out = self.core(self.emb(src), self.emb(tgt), tgt_mask=future, memory_key_padding_mask=src == 0, **hidden)
        return self.fc(out)  # type: ignore[no-any-return]


def test_rows_that_hide_themselves_do_not_stop_the_measurement() -> None:
    plan = infer_call_plan(HidesZero())
    verdicts = {f.name: f.verdict for f in plan.findings}
    assert (plan.causal, verdicts["causality"], verdicts["id 0"]) == (True, "ok", "warn")
    leaking = {f.name: f for f in infer_call_plan(HidesZero(leaks=True)).findings}
    assert "earlier positions" in leaking["causality"].measured


class ThreeMasks(nn.Module):
    """nn.Transformer's masks under names of its author; the causal one stands last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e = nn.Embedding(40, 16)
        self.whole = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 40)

    def forward(self, X: Tensor, Y: Tensor, X_mask: Tensor, Y_mask: Tensor, foresee_mask: Tensor) -> Tensor:
        h = self.whole(
            self.e(X),
            self.e(Y),
            tgt_mask=foresee_mask,
            src_key_padding_mask=X_mask,
            tgt_key_padding_mask=Y_mask,
            memory_key_padding_mask=X_mask,
        )
        return self.head(h)  # type: ignore[no-any-return]


def test_the_mask_of_the_future_may_have_any_name() -> None:
    plan = infer_call_plan(ThreeMasks())
    assert plan.family == "encoder_decoder"
    assert (plan.mask_arg, plan.mask_form) == ("X_mask", "masked")
    assert {a.name: a.role for a in plan.extras} == {"foresee_mask": "target_causal_mask", "Y_mask": "target_mask"}
    assert require_trainable(plan)[0] == "seq2seq"


class UnknownMask(ThreeMasks):
    def forward(self, X: Tensor, Y: Tensor, X_mask: Tensor, Y_mask: Tensor, cover_mask: Tensor) -> Tensor:
        return super().forward(X, Y, X_mask, Y_mask, cover_mask)


def test_it_is_found_by_what_it_does() -> None:
    plan = infer_call_plan(UnknownMask())
    assert {a.name: a.role for a in plan.extras} == {"cover_mask": "target_causal_mask", "Y_mask": "target_mask"}


def test_a_call_that_fails_at_another_length_of_the_target_is_told() -> None:
    module = ThreeMasks().eval()
    plan = infer_call_plan(module)
    extras = (replace(a, role="mask", shape="BT") if a.role == "target_mask" else a for a in plan.extras)
    of_source = replace(plan, extras=tuple(extras))
    assert source_finding(Prober(module), plan).verdict == "ok"
    assert source_finding(Prober(module), of_source).verdict == "fail"


class Methods(nn.Module):
    """encode, decode and project; the decoder's mask is the caller's, in the form that ``add`` makes of it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.read, self.write = nn.Embedding(31, 16), nn.Embedding(29, 16)
        self.places = nn.Embedding(600, 16)
        self.own = nn.Linear(16, 16)
        self.across = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 29)

    def encode(self, src: Tensor) -> Tensor:
        return self.read(src) + self.places(torch.arange(src.shape[1]))

    def decode(self, tgt: Tensor, memory: Tensor, tgt_mask: Tensor) -> Tensor:
        y = self.write(tgt) + self.places(torch.arange(tgt.shape[1]))
        scores = self.own(y) @ y.transpose(1, 2)
        if self.form == "additive":
            scores = scores + tgt_mask
        elif self.form == "masked":
            scores = scores.masked_fill(tgt_mask.bool(), -torch.inf)
        else:
            scores = scores.masked_fill(tgt_mask == 0, -1e9)
        y = y + scores.softmax(-1) @ y
        return y + self.across(y, memory, memory)[0]

    def project(self, x: Tensor) -> Tensor:
        return self.head(x)


@pytest.mark.parametrize("form", ["keep", "masked", "additive"])
def test_a_decode_methods_mask_in_any_form(form: str) -> None:
    module = Methods(form).eval()
    plan = infer_call_plan(module)
    assert (plan.family, plan.causal) == ("encoder_decoder", True)
    assert not [f for f in plan.findings if f.verdict == "fail"]
    src, tgt = torch.randint(1, 29, (2, 5)), torch.randint(1, 29, (2, 4))
    past = torch.ones(4, 4).tril()
    mask = {"keep": past, "masked": 1 - past, "additive": past.log()}[form]
    right = module.project(module.decode(tgt, module.encode(src), mask))
    torch.testing.assert_close(call_logits(module, plan, src, target_ids=tgt), right, rtol=0, atol=1e-5)


class ReadsTheSourceAgain(nn.Module):
    """decode takes what was encoded and the source's ids, for its padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(29, 16)
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 29)

    def encode(self, X: Tensor) -> Tensor:
        return self.transformer.encoder(self.embedding(X), src_key_padding_mask=X == 0)

    def decode(self, mem: Tensor, X: Tensor, Yin: Tensor) -> Tensor:
        past = nn.Transformer.generate_square_subsequent_mask(Yin.shape[1])
        return self.head(self.transformer.decoder(self.embedding(Yin), mem, past, memory_key_padding_mask=X == 0))


def test_a_decode_method_may_take_the_source_again() -> None:
    module = ReadsTheSourceAgain().eval()
    plan = infer_call_plan(module)
    assert not [f for f in plan.findings if f.verdict == "fail"]
    src, tgt = torch.randint(0, 29, (2, 5)), torch.randint(1, 29, (2, 5))  # of one length: shapes tell nothing
    right = module.decode(module.encode(src), src, tgt)
    torch.testing.assert_close(call_logits(module, plan, src, target_ids=tgt), right, rtol=0, atol=1e-5)


class ReadsFacts(ReadsTheSourceAgain):
    def decode(self, mem: Tensor, knowledge: Tensor, Yin: Tensor) -> Tensor:
        return super().decode(mem + self.embedding(knowledge).mean(1, keepdim=True), Yin * 0 + 1, Yin)


def test_a_second_text_of_decode_is_not_made_up() -> None:
    with pytest.raises(CallError):
        infer_call_plan(ReadsFacts())


class PadsOfMethods(ReadsTheSourceAgain):
    """Padding of both texts by masks, 1 = masked; the future is its own."""

    def encode(self, X: Tensor, src_pad: Tensor) -> Tensor:
        return self.transformer.encoder(self.embedding(X), src_key_padding_mask=src_pad.bool())

    def decode(self, mem: Tensor, Yin: Tensor, src_pad: Tensor, tgt_pad: Tensor) -> Tensor:  # type: ignore[override]
        past = torch.ones(Yin.shape[1], Yin.shape[1], dtype=torch.bool).triu(1)
        told = {"tgt_key_padding_mask": tgt_pad.bool(), "memory_key_padding_mask": src_pad.bool()}
        return self.head(self.transformer.decoder(self.embedding(Yin), mem, past, **told))


def test_methods_take_padding_of_both_texts() -> None:
    module = PadsOfMethods().eval()
    plan = infer_call_plan(module)
    src, tgt = torch.randint(1, 29, (1, 6)), torch.randint(1, 29, (1, 5))
    keep = torch.tensor([[1, 1, 1, 1, 0, 0]])
    right = module.decode(module.encode(src, keep == 0), tgt, keep == 0, tgt == 0)
    torch.testing.assert_close(call_logits(module, plan, src, keep, target_ids=tgt), right)


class Attending(nn.Module):
    """Keys where the mask is True (hidden) or, of ``keeps``, 0 are given −1e9: with all of them so, all are seen."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.keeps = keeps
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(memory).transpose(1, 2)
        scores = scores.masked_fill(mask == 0, -1e9) if self.keeps else scores.masked_fill_(mask, -1e9)
        return x + scores.softmax(-1) @ memory


class ThreePadding(nn.Module):
    """Each attention is told of padding by a mask of its own, all made alike; the decoder's future is its own."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.keeps = keeps
        self.e = nn.Embedding(40, 16)
        self.reader, self.own, self.cross = (Attending(keeps) for _ in range(3))
        self.head = nn.Linear(16, 40)

    def forward(
        self, src: Tensor, tgt: Tensor, src_pad_mask: Tensor, tgt_pad_mask: Tensor, enc_pad_mask: Tensor
    ) -> Tensor:
        T = tgt.shape[1]
        if self.keeps:
            own = tgt_pad_mask.bool() & torch.ones(T, T, dtype=torch.bool).tril()
        else:
            own = (tgt_pad_mask + torch.ones(len(tgt), T, T).triu(1).byte()).gt(0)
        memory = self.reader(self.e(src), self.e(src), src_pad_mask)
        h = self.cross(self.own(self.e(tgt), self.e(tgt), own), memory, enc_pad_mask)
        return self.head(h).reshape(-1, 40)  # type: ignore[no-any-return]


@pytest.mark.parametrize("keeps", [True, False])
def test_masks_of_one_make_are_found_with_the_polarity_that_hides(keeps: bool) -> None:
    module = ThreePadding(keeps).eval()
    plan = planned(module)
    forms = {a.name: a.form for a in plan.extras} | {plan.mask_arg: plan.mask_form}
    assert set(forms) == {"src_pad_mask", "tgt_pad_mask", "enc_pad_mask"}
    assert set(forms.values()) == {"keep" if keeps else "masked"}
    src, tgt = torch.arange(1, 7)[None], torch.arange(11, 16)[None]
    keep = torch.tensor([[1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        alone = call_logits(module, plan, src[:, :4], target_ids=tgt)
        behind = call_logits(module, plan, src, keep, target_ids=tgt)
        seen = module(src, tgt, *(torch.full((1, 1, n), keeps) for n in (6, 5, 6))).reshape(1, 5, 40)
        torch.testing.assert_close(behind, alone)
        torch.testing.assert_close(call_logits(module, plan, src, target_ids=tgt), seen)


class NamedByPad(ThreePadding):
    def forward(self, src: Tensor, tgt_in: Tensor, src_pad: Tensor, tgt_pad: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(src, tgt_in, src_pad[:, None], tgt_pad[:, None], src_pad[:, None])


def test_padding_by_its_bare_name() -> None:
    module = NamedByPad(keeps=False).eval()
    plan = planned(module)
    assert (plan.mask_arg, plan.mask_form, plan.mask_shape) == ("src_pad", "masked", "BT")
    assert [(a.name, a.role, a.form) for a in plan.extras] == [("tgt_pad", "target_mask", "masked")]
    src, tgt = torch.arange(1, 7)[None], torch.arange(11, 16)[None]
    right = module(src[:, :4], tgt, torch.zeros(1, 4).bool(), torch.zeros(1, 5).bool()).reshape(1, 5, 40)
    keep = torch.tensor([[1, 1, 1, 1, 0, 0]])
    torch.testing.assert_close(call_logits(module, plan, src, keep, target_ids=tgt), right)


class ChinesePast(nn.Module):
    """The target's own mask, causal, has the target's word and not "target" in its name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e = nn.Embedding(40, 16)
        self.reader, self.own, self.cross = (Attending(True) for _ in range(3))
        self.head = nn.Linear(16, 40)

    def forward(self, english_seq: Tensor, chinese_seq: Tensor, english_mask: Tensor, chinese_mask: Tensor) -> Tensor:
        x, y = self.e(english_seq), self.e(chinese_seq)
        y = self.own(y, y, chinese_mask)
        return self.head(self.cross(y, self.reader(x, x, english_mask), english_mask))


def test_the_mask_named_as_the_target_is_the_targets() -> None:
    module = ChinesePast().eval()
    plan = planned(module)
    assert (plan.mask_arg, plan.causal) == ("english_mask", True)
    assert not [f for f in plan.findings if f.verdict == "fail"]
    src, tgt = torch.arange(1, 7)[None], torch.arange(11, 16)[None]
    keep, past = torch.tensor([[1, 1, 1, 1, 0, 0]]), torch.ones(5, 5).tril()[None]
    right = module(src, tgt, keep[:, None], past)
    torch.testing.assert_close(call_logits(module, plan, src, keep, target_ids=tgt), right)


class OfFourAxes(ChinesePast):
    """Masks True where hidden, all of four axes: of the source's padding, and of the target's padding and future."""

    def forward(  # type: ignore[override]
        self, src: Tensor, tgt: Tensor, src_padding_mask: Tensor, tgt_padding_mask: Tensor, combined_mask: Tensor
    ) -> Tensor:
        assert {m.dim() for m in (src_padding_mask, combined_mask)} == {4}
        x, y = self.e(src), self.e(tgt)
        y = self.own(y, y, ~combined_mask[:, 0].expand(-1, tgt.shape[1], -1))
        hidden = src_padding_mask.expand(-1, -1, tgt.shape[1], -1)[:, 0]
        return self.head(self.cross(y, self.reader(x, x, ~src_padding_mask[:, 0]), ~hidden))


def test_masks_of_as_many_axes_are_tried_together() -> None:
    module = OfFourAxes().eval()
    plan = planned(module)
    assert plan.causal
    assert not [f for f in plan.findings if f.verdict == "fail"]
    src, tgt = torch.arange(1, 7)[None], torch.arange(11, 16)[None]
    keep, future = torch.tensor([[1, 1, 1, 1, 0, 0]]), torch.ones(5, 5).triu(1).bool()[None, None]
    right = module(src, tgt, keep[:, None, None] == 0, torch.zeros(1, 1, 1, 5).bool(), future)
    torch.testing.assert_close(call_logits(module, plan, src, keep, target_ids=tgt), right)


class Initials(ChinesePast):
    """Masks True where hidden, named by a letter; that of the target's padding beside one of the target itself."""

    def forward(  # type: ignore[override]
        self, inputs: Tensor, targets: Tensor, i_mask: Tensor, t_self_mask: Tensor, t_mask: Tensor
    ) -> Tensor:
        x, y = self.e(inputs), self.e(targets)
        x = x.masked_fill(i_mask.squeeze(1).unsqueeze(-1), 0)
        y = F.pad(y.masked_fill(t_mask.squeeze(1).unsqueeze(-1), 0)[:, :-1], (0, 0, 1, 0))
        y = self.own(y, y, ~t_self_mask)
        return self.head(self.cross(y, self.reader(x, x, ~i_mask), ~i_mask))


class ByUse(Initials):
    def forward(  # type: ignore[override]
        self, inputs: Tensor, targets: Tensor, src_mask: Tensor, causal_mask: Tensor, tgt_mask: Tensor
    ) -> Tensor:
        return super().forward(inputs, targets, src_mask, causal_mask, tgt_mask)


@pytest.mark.parametrize(
    ("cls", "source", "own", "padding"),
    [(Initials, "i_mask", "t_self_mask", "t_mask"), (ByUse, "src_mask", "causal_mask", "tgt_mask")],
)
def test_a_causal_and_a_padding_mask_of_a_target_that_is_shifted_inside(
    cls: type[Initials], source: str, own: str, padding: str
) -> None:
    module = cls().eval()
    plan = planned(module)
    assert (plan.mask_arg, plan.mask_shape, plan.mask_form) == (source, "B1T", "masked")
    assert {a.name: (a.role, a.form) for a in plan.extras} == {
        own: ("target_causal_mask", "masked"),
        padding: ("target_mask", "masked"),
    }
    assert next(a.shape for a in plan.extras if a.name == padding) == "B1S"
    assert plan.alignment == "own"
    src, tgt = torch.arange(1, 7)[None], torch.arange(11, 16)[None]
    keep, future = torch.tensor([[1, 1, 1, 1, 0, 0]]), torch.ones(1, 5, 5).triu(1).bool()
    right = module(src, tgt, keep[:, None] == 0, future, torch.zeros(1, 1, 5).bool())[:, 1:]  # [t] is for token t
    torch.testing.assert_close(call_logits(module, plan, src, keep, target_ids=tgt)[:, : right.shape[1]], right)


class SharedWords(ChinesePast):
    """input_mask is the source's, though the target is called so, too; the cross attention has a mask of its own."""

    def forward(  # type: ignore[override]
        self, source: Tensor, target_input: Tensor, input_mask: Tensor, src_tgt_mask: Tensor
    ) -> Tensor:
        x, y = self.e(source), self.e(target_input)
        y = self.own(y, y, torch.ones(y.shape[1], y.shape[1]).tril()[None])
        return self.head(self.cross(y, self.reader(x, x, input_mask[:, None]), src_tgt_mask[:, None]))


def test_a_word_of_ids_tells_not_whose_a_mask_is() -> None:
    module = SharedWords().eval()
    plan = planned(module)
    assert plan.mask_arg == "input_mask"
    assert {a.name: a.role for a in plan.extras} == {"src_tgt_mask": "memory_mask"}
    src, tgt = torch.arange(1, 7)[None], torch.arange(11, 16)[None]
    keep = torch.tensor([[1, 1, 1, 1, 0, 0]])
    torch.testing.assert_close(call_logits(module, plan, src, keep, target_ids=tgt), module(src, tgt, keep, keep))


class SquareKeep(ChinesePast):
    """src_mask (T, T), 1 = keep, is given an axis: where all is hidden, all keys have the same weight."""

    def forward(self, src: Tensor, tgt: Tensor, src_mask: Tensor) -> Tensor:  # type: ignore[override]
        assert src_mask.dim() == 2
        assert src_mask.shape[0] == src_mask.shape[1]
        x, y = self.e(src), self.e(tgt)
        y = self.own(y, y, torch.ones(y.shape[1], y.shape[1]).tril()[None])
        return self.head(self.cross(y, self.reader(x, x, src_mask.unsqueeze(0)), torch.ones(1, 1, src.shape[1])))


def test_the_polarity_of_a_square_mask_leaves_scores() -> None:
    module = SquareKeep().eval()
    plan = planned(module)
    src, tgt = torch.arange(1, 7)[None], torch.arange(11, 16)[None]
    torch.testing.assert_close(call_logits(module, plan, src, target_ids=tgt), module(src, tgt, torch.ones(6, 6)))


class WithLoss(nn.Module):
    """Labels are required beside the decoder's input, and shifted by the caller."""

    def __init__(self, alone: bool = False, shifted: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.alone, self.shifted = alone, shifted
        self.e, self.places = nn.Embedding(30, 16), nn.Embedding(60, 16)
        self.core = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 30)

    def embedded(self, ids: Tensor) -> Tensor:
        return self.e(ids) + self.places(torch.arange(ids.shape[1]))

    def logits(self, src: Tensor, tgt: Tensor) -> Tensor:
        past = nn.Transformer.generate_square_subsequent_mask(tgt.shape[1])
        return self.head(self.core(self.embedded(src), self.embedded(tgt), tgt_mask=past))

    def forward(self, src: Tensor, tgt_in: Tensor, tgt_out: Tensor) -> Any:
        logits = self.logits(src, tgt_out if self.shifted else tgt_in)
        loss = nn.functional.cross_entropy(logits.reshape(-1, 30), tgt_out.reshape(-1))
        return loss if self.alone else (logits, loss)


@pytest.mark.parametrize("alone", [False, True])
def test_labels_of_the_loss_are_given_any_ids(alone: bool) -> None:
    module = WithLoss(alone).eval()
    plan = infer_call_plan(module)
    assert (plan.target_arg, plan.max_positions) == ("tgt_in", 60)
    assert [(a.name, a.role) for a in plan.extras] == [("tgt_out", "target_ids")]
    found = {f.name: f for f in plan.findings}
    assert {f.verdict for f in plan.findings} <= {"ok", "note"}
    assert "equals ours" in found["own loss"].measured
    src, tgt = torch.arange(1, 7)[None], torch.arange(11, 16)[None]
    torch.testing.assert_close(call_logits(module, plan, src, target_ids=tgt), module.logits(src, tgt))


def test_labels_that_are_read_are_no_labels() -> None:
    plan = infer_call_plan(WithLoss(shifted=True))
    assert ("argument", "fail") in {(f.name, f.verdict) for f in plan.findings}


class Scaled(ChinesePast):
    """What the mask means, nothing shows: it scales what is read."""

    def forward(self, src: Tensor, tgt: Tensor, src_mask: Tensor) -> Tensor:  # type: ignore[override]
        x, y = self.e(src) * (1 + src_mask[..., None]), self.e(tgt)
        y = self.own(y, y, torch.ones(tgt.shape[1], tgt.shape[1]).tril()[None])
        return self.head(self.cross(y, x, torch.ones(1, 1, src.shape[1])))


def test_a_required_mask_that_hides_nothing_is_a_guess() -> None:
    found = next(f for f in infer_call_plan(Scaled()).findings if f.name == "mask")
    assert found.verdict == "fail"


class PaddingOfBoth(nn.Module):
    """src_mask and tgt_mask are of padding, (B, T) and (B, S), 1 = keep; the decoder's future is its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e = nn.Embedding(40, 16)
        self.whole = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 40)

    def forward(self, src_ids: Tensor, tgt_ids: Tensor, src_mask: Tensor, tgt_mask: Tensor) -> Tensor:
        S = tgt_ids.shape[1]
        memory = self.whole.encoder(self.e(src_ids), src_key_padding_mask=src_mask == 0)
        h = self.whole.decoder(
            self.e(tgt_ids),
            memory,
            tgt_mask=torch.full((S, S), -torch.inf).triu(1),
            tgt_key_padding_mask=tgt_mask == 0,
            memory_key_padding_mask=src_mask == 0,
        )
        return self.head(h)  # type: ignore[no-any-return]


def test_a_targets_mask_may_be_one_of_padding() -> None:
    plan = planned(PaddingOfBoth())
    assert (plan.mask_arg, plan.mask_shape, plan.mask_form) == ("src_mask", "BT", "keep")
    assert [(a.name, a.role, a.shape, a.form) for a in plan.extras] == [("tgt_mask", "target_mask", "BS", "keep")]


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("labels", ["labels", "targets"])
def test_labels_without_which_the_last_position_alone_comes_out(labels: str, both: bool) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.e, self.places = nn.Embedding(60, 16), nn.Embedding(40, 16)
            self.tf = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)
            self.head = nn.Linear(16, 60, bias=False)

        def states(self, src: Tensor, tgt: Tensor) -> Tensor:
            x, y = (self.e(ids) + self.places(torch.arange(ids.shape[1])) for ids in (src, tgt))
            mask = nn.Transformer.generate_square_subsequent_mask(tgt.shape[1])
            return self.tf(x, y, tgt_mask=mask)  # type: ignore[no-any-return]

        def given(self, src: Tensor, tgt: Tensor, labels: Tensor | None) -> Any:
            h = self.states(src, tgt)
            if labels is None:
                last = self.head(h[:, [-1]])
                return (last, None) if both else last
            logits = self.head(h)
            loss = F.cross_entropy(logits.view(-1, 60), labels.view(-1))
            return (logits, loss) if both else loss

    class WithLabels(Last):
        def forward(self, src: Tensor, tgt: Tensor, labels: Tensor | None = None) -> Any:
            return self.given(src, tgt, labels)

    class WithTargets(Last):
        def forward(self, src: Tensor, tgt: Tensor, targets: Tensor | None = None) -> Any:
            return self.given(src, tgt, targets)

    module = (WithLabels() if labels == "labels" else WithTargets()).eval()
    plan = infer_call_plan(module)
    assert (plan.family, plan.token_arg, plan.target_arg) == ("encoder_decoder", "src", "tgt")
    assert not [f for f in plan.findings if f.verdict == "fail"]
    src, tgt = torch.randint(0, 60, (3, 8)), torch.randint(0, 60, (3, 6))
    right = module.head(module.states(src, tgt))
    torch.testing.assert_close(call_logits(module, plan, src, target_ids=tgt), right)


class OwnMask(nn.Module):
    """Its default for the target's mask is as wide as the batch: a slip that only a given mask passes by."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e = nn.Embedding(60, 16)
        self.tf = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 60)

    def forward(self, src: Tensor, tgt: Tensor, tgt_mask: Tensor | None = None) -> Tensor:
        if tgt_mask is None:
            tgt_mask = nn.Transformer.generate_square_subsequent_mask(tgt.size(0))
        return self.head(self.tf(self.e(src), self.e(tgt), tgt_mask=tgt_mask))


@pytest.mark.parametrize("overrides", [None, {"arguments": {"tgt_mask": "causal_mask"}}])
def test_an_optional_mask_that_forward_cannot_do_without(overrides: dict[str, Any] | None) -> None:
    module = OwnMask().eval()
    plan = infer_call_plan(module, overrides=overrides)
    assert plan.family == "encoder_decoder"
    assert not [f for f in plan.findings if f.verdict == "fail"]
    src, tgt = torch.randint(0, 60, (3, 8)), torch.randint(0, 60, (3, 6))
    right = module(src, tgt, nn.Transformer.generate_square_subsequent_mask(6))
    torch.testing.assert_close(call_logits(module, plan, src, target_ids=tgt), right)


class CausalWhereMasked(nn.Module):
    """T5's way in some files: the decoder adds its causal mask to one of padding, and has none without it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.source, self.target = nn.Embedding(40, 16), nn.Embedding(30, 16)
        self.own = nn.MultiheadAttention(16, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 30)

    def forward(
        self, input_ids: Tensor, decoder_input_ids: Tensor, decoder_attention_mask: Tensor | None = None
    ) -> Tensor:
        x, mask = self.target(decoder_input_ids), None
        if decoder_attention_mask is not None:
            S = x.shape[1]
            keep = torch.ones(S, S).tril() * decoder_attention_mask[:, None, :]
            mask = ((1.0 - keep) * -1e9).repeat_interleave(2, 0)
        x = x + self.own(x, x, x, attn_mask=mask)[0]
        memory = self.source(input_ids)
        return self.head(x + self.cross(x, memory, memory)[0])


def test_a_decoder_that_is_causal_only_where_a_mask_of_padding_is_given() -> None:
    module = CausalWhereMasked()
    plan = infer_call_plan(module)
    (given,) = [a for a in plan.extras if a.name == "decoder_attention_mask"]
    assert (given.role, given.shape, given.form) == ("target_mask", "BS", "keep")
    assert plan.causal
    source, read = torch.randint(0, 40, (2, 7)), torch.randint(0, 30, (2, 5))
    logits = call_logits(module, plan, source, target_ids=read)
    assert torch.allclose(logits, module(source, read, torch.ones(2, 5)), atol=1e-5)
    assert not torch.allclose(logits, module(source, read), atol=1e-3)
    kept = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    padded = call_logits(module, plan, source, target_ids=read, target_mask=kept)
    assert torch.allclose(padded[0, :3], module(source[:1], read[:1, :3], torch.ones(1, 3))[0], atol=1e-5)


def test_of_calls_that_fail_alike_the_plainest_is_told() -> None:
    class Swapped(nn.Module):
        """Its author gave the width where the length belongs."""

        def __init__(self) -> None:
            super().__init__()
            self.read, self.write = nn.Embedding(30, 16), nn.Embedding(30, 16)
            self.places, self.head = nn.Parameter(torch.randn(16, 24)), nn.Linear(16, 30)

        def forward(self, src: Tensor, tgt: Tensor, tgt_mask: Tensor | None = None) -> Tensor:
            y = self.write(tgt)
            if tgt_mask is not None:
                y = y + tgt_mask.float() @ torch.ones(7, 16)
            return self.head(y + self.read(src).mean(1, keepdim=True) + self.places[: tgt.shape[1]])

    with pytest.raises(CallError) as caught:
        infer_call_plan(Swapped())
    assert "size of tensor a (16) must match the size of tensor b (24)" in caught.value.detail
    assert "places" in caught.value.detail

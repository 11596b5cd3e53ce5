"""Conventions beside those of the zoo: what is stated by hand, stored plans, odd inputs, own losses, evidence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.callplan import CallPlan, call_logits, infer_call_plan
from anyformer.models.calls import ownloss
from anyformer.models.calls.evidence import gather
from anyformer.models.calls.names import hint
from anyformer.models.calls.overrides import read_overrides
from anyformer.models.proofs import prove_plan
from anyformer.models.source import load_model

V, D = 23, 12
IDS = torch.randint(1, V, (3, 6), generator=torch.Generator().manual_seed(7))


class Core(nn.Module):
    """One attention layer; the mask is the caller's: (T, T) bool, True = may be looked at."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(V, D)
        self.positions = nn.Embedding(40, D)
        self.qkv = nn.Linear(D, 3 * D)
        self.head = nn.Linear(D, V)

    def logits(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        T = ids.shape[-1]
        x = self.tokens(ids) + self.positions(torch.arange(T))
        q, k, v = self.qkv(x).chunk(3, -1)
        keep = torch.ones(T, T).tril() if keep is None else keep
        scores = (q @ k.transpose(-1, -2)).masked_fill(keep == 0, -1e9)
        return self.head(x + scores.softmax(-1) @ v)

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(ids)


def found(plan: CallPlan, name: str) -> Finding:
    return next(f for f in plan.findings if f.name == name)


def fails(module: nn.Module, plan: CallPlan) -> list[str]:
    return [f"{f.name}: {f.measured}" for f in prove_plan(module, plan) if f.verdict == "fail"]


# what the user states


class Several(Core):
    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        y = self.logits(ids)
        return torch.cat([y, y], -1), y.flip(-1)


def test_a_stated_place_is_honoured_and_proven() -> None:
    module = Several()
    assert infer_call_plan(module).logits_path == (1,)  # as wide as the embedding has rows
    plan = infer_call_plan(module, overrides={"logits": "output[0]"})
    assert (plan.logits_path, plan.vocab_size) == ((0,), 2 * V)
    assert found(plan, "stated").measured == "logits: output[0]"
    assert fails(module, plan) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"logits": "output[2]"}, "nothing like logits at output[2]"),
        ({"logitz": "output[1]"}, "call has no logitz"),
        ({"batch": "third"}, "call.batch is 'third'"),
        ({"tokens": "nope"}, "forward has no argument nope\n  it takes ids"),
        ({"arguments": {"mask": 0}}, "forward has no argument mask"),
    ],
)
def test_a_wrong_statement_says_what_the_module_did_instead(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(CallError) as caught:
        infer_call_plan(Several(), overrides=overrides)
    assert words in str(caught.value)


def test_an_argument_that_nothing_names_is_settled_by_a_statement() -> None:
    class Level(Core):
        def forward(self, ids: Tensor, level: object) -> Tensor:
            if level != "high":
                raise ValueError("level is high or nothing")
            return self.logits(ids)

    with pytest.raises(CallError) as caught:
        infer_call_plan(Level())
    assert "call:\n  →   tokens: ids" in str(caught.value)
    assert "level is high or nothing" in str(caught.value)
    plan = infer_call_plan(Level(), overrides={"arguments": {"level": "high"}})
    assert [a.text() for a in plan.extras] == ["level = 'high'"]
    assert CallPlan.from_dict(plan.to_dict()) == plan


def test_overrides_are_read_beside_the_model(tmp_path) -> None:  # type: ignore[no-untyped-def]
    text = (
        "import torch\nfrom torch import nn\n\n\nclass Pair(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.e = nn.Embedding(9, 4)\n        self.h = nn.Linear(4, 9)\n\n"
        "    def forward(self, ids):\n        y = self.h(self.e(ids))\n        return y, -y\n"
    )
    (tmp_path / "model.py").write_text(text)
    assert read_overrides(tmp_path) is None
    assert load_model(tmp_path / "model.py").overrides is None
    (tmp_path / "anyformer.yaml").write_text("call:\n  logits: output[1]\n")
    loaded = load_model(tmp_path / "model.py")
    assert loaded.overrides == {"logits": "output[1]"}
    assert "anyformer.yaml" in loaded.sources
    assert infer_call_plan(loaded.module, overrides=loaded.overrides).logits_path == (1,)
    for wrong, word in (
        ("colour: red\n", "unknown keys: colour"),
        ("call: [1\n", "not YAML"),
        ("call: 3\n", "call is 3"),
    ):
        (tmp_path / "anyformer.yaml").write_text(wrong)
        with pytest.raises(CallError, match=word):
            read_overrides(tmp_path)


# masks: the form is chosen by what it does


FORMS = {
    "keep": lambda m: m,
    "masked": lambda m: m == 0,
    "additive": lambda m: torch.isfinite(m) if m.is_floating_point() else _refuse(),
}


def _refuse() -> Tensor:
    raise TypeError("an additive mask is float")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dims", [2, 3])
def test_the_form_of_a_required_causal_mask_is_measured(form: str, dims: int) -> None:
    class Asking(Core):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            assert mask.dim() == dims
            return self.logits(ids, FORMS[form](mask))

    module = Asking()
    plan = infer_call_plan(module)
    (argument,) = plan.extras
    assert (plan.family, plan.causal, argument.role, argument.form) == ("decoder", True, "causal_mask", form)
    torch.testing.assert_close(call_logits(module, plan, IDS), module.logits(IDS))
    wrong = "masked" if form != "masked" else "keep"
    inverted = replace(plan, extras=(replace(argument, form=wrong, dtype="bool"),))
    if form == "additive":
        with pytest.raises(CallError, match="an additive mask is float"):
            prove_plan(module, inverted)
    else:
        assert fails(module, inverted)


# odd inputs


def test_one_sequence_without_a_batch_is_called_row_by_row() -> None:
    class Packed(Core):
        def forward(self, ids: Tensor) -> Tensor:
            assert ids.dim() == 1
            return self.logits(ids)

    class Single(Core):
        def forward(self, ids: Tensor) -> Tensor:
            assert len(ids) == 1, "one sequence at a time"
            return self.logits(ids)

    for cls, packed in ((Packed, "T"), (Single, "1T")):
        module = cls()
        plan = infer_call_plan(module)
        assert (plan.packed, plan.causal, plan.max_positions) == (packed, True, 40)
        assert found(plan, "rows").verdict == "warn"
        torch.testing.assert_close(call_logits(module, plan, IDS), module.logits(IDS))
        assert fails(module, plan) == []


def test_a_length_that_alone_runs_is_found() -> None:
    class Fixed(Core):
        def forward(self, ids: Tensor) -> Tensor:
            if ids.shape[1] != 40:
                raise ValueError("40 tokens")
            return self.logits(ids)

    plan = infer_call_plan(Fixed())
    assert (plan.max_positions, plan.causal) == (40, True)
    assert "exactly 40" in found(plan, "positions").measured
    assert fails(Fixed(), plan) == []


def test_an_argument_that_nobody_can_guess_is_not_guessed() -> None:
    class Context(Core):
        def forward(self, ids: Tensor, extra: Tensor) -> Tensor:
            return self.logits(ids) + extra

    with pytest.raises(CallError) as caught:
        infer_call_plan(Context())
    assert "return self.logits(ids) + extra" in str(caught.value)


# own losses


def _own(loss) -> nn.Module:  # type: ignore[no-untyped-def]
    class WithLoss(Core):
        def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
            y = self.logits(idx)
            return y, None if targets is None else loss(y, targets)

    return WithLoss()


LOSSES = {
    "targets shifted by the caller": ("ok", lambda y, t: F.cross_entropy(y.flatten(0, 1), t.flatten())),
    "targets shifted inside": ("ok", lambda y, t: F.cross_entropy(y[:, :-1].flatten(0, 1), t[:, 1:].flatten())),
    "label smoothing 0.1": ("note", lambda y, t: F.cross_entropy(y.flatten(0, 1), t.flatten(), label_smoothing=0.1)),
    "an auxiliary loss": ("warn", lambda y, t: F.cross_entropy(y.flatten(0, 1), t.flatten()) + y.pow(2).mean()),
    "leaves out targets of id 0": (
        "note",
        lambda y, t: F.cross_entropy(y.flatten(0, 1), t.flatten(), ignore_index=0),
    ),
    "a sum over the targets": ("note", lambda y, t: F.cross_entropy(y.flatten(0, 1), t.flatten(), reduction="sum")),
    "target t + 2": ("warn", lambda y, t: F.cross_entropy(y[:, :-2].flatten(0, 1), t[:, 2:].flatten())),
    "target t, id +1": ("warn", lambda y, t: F.cross_entropy(y.flatten(0, 1), (t.flatten() + 1) % V)),
    "another formula": ("warn", lambda y, t: (y.softmax(-1) - F.one_hot(t, V)).pow(2).mean()),
}


@pytest.mark.parametrize("words", LOSSES)
def test_what_its_own_loss_is(words: str) -> None:
    verdict, loss = LOSSES[words]
    finding = found(infer_call_plan(_own(loss)), "own loss")
    assert words in f"{finding.measured} {finding.reason}"
    assert finding.verdict == verdict


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("size", [0.1, 1.0])
def test_smoothing_is_told_from_other_formulas_though_losses_are_rounded(share: float, size: float) -> None:
    smoothed = others = 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(4, 12, 72, generator=generator) * size
        targets = torch.randint(0, 72, (2, 4, 12), generator=generator)
        ours = [F.cross_entropy(rows.flatten(0, 1), t.flatten()) for t in targets]
        theirs = [F.cross_entropy(rows.flatten(0, 1), t.flatten(), label_smoothing=share) for t in targets]
        rounded = [torch.nextafter(loss, torch.tensor(9.0)) for loss in theirs]  # another machine's sum
        focal = [loss * (1 - (-loss).exp()) for loss in ours]
        calls = [[ownloss._Call(x, t) for x, t in zip(xs, targets, strict=True)] for xs in (rounded, focal)]
        smoothed += ownloss._smoothing(rows, calls[0], ours) == share
        others += ownloss._smoothing(rows, calls[1], ours) is not None
    assert smoothed > 30  # of nearly even logits some differ too little
    assert others == 0


def test_a_loss_that_trains_a_copy_is_named() -> None:
    class Copying(Core):
        def forward(self, ids: Tensor) -> Tensor:
            return F.cross_entropy(self.logits(ids).flatten(0, 1), ids.flatten())

    module = Copying()
    plan = infer_call_plan(module)
    assert plan.logits_from == "loss"
    assert "trains a copy" in found(plan, "own loss").measured
    torch.testing.assert_close(call_logits(module, plan, IDS), module.logits(IDS))


@pytest.mark.parametrize("shift", [0, 1])
def test_a_loss_that_gathers_the_targets_log_probabilities_is_read(shift: int) -> None:
    class Gathers(Core):
        def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
            T = ids.shape[1]
            normal = F.log_softmax(self.logits(ids)[:, : T - shift], dim=-1)
            return -normal.gather(-1, targets[:, shift:, None]).mean()

    module = Gathers()
    plan = infer_call_plan(module)
    assert (plan.logits_from, plan.kind, plan.alignment) == ("loss", "log-probabilities", "short" if shift else "next")
    assert found(plan, "own loss").verdict == "ok"
    length = IDS.shape[1] - shift
    torch.testing.assert_close(
        call_logits(module, plan, IDS).softmax(-1)[:, :length], module.logits(IDS).softmax(-1)[:, :length]
    )


@pytest.mark.parametrize("shift", [0, 1])
def test_of_logits_that_are_nearly_equal_nothing_is_said_of_the_shift(shift: int) -> None:
    class Flat(Core):
        def forward(self, ids: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
            y = 1e-8 * self.logits(ids)
            T = ids.shape[1]
            return y, None if labels is None else F.cross_entropy(
                y[:, : T - shift].flatten(0, 1), labels[:, shift:].flatten()
            )

    finding = found(infer_call_plan(Flat()), "own loss")
    assert (finding.verdict, finding.measured) == ("note", "cannot be told from ours, shifted or not")


# what speaks for an encoder


def test_names_decide_only_where_the_module_looks_both_ways() -> None:
    class TinyBert(Core):
        def forward(self, ids: Tensor) -> Tensor:
            return self.logits(ids, torch.ones(1, 1))

    class TinyGPT(TinyBert):
        pass

    class CausalBert(Core):
        pass

    assert (infer_call_plan(TinyBert()).family, infer_call_plan(TinyBert()).causal) == ("encoder", False)
    assert gather(TinyGPT()).decoder
    assert (infer_call_plan(TinyGPT()).family, found(infer_call_plan(TinyGPT()), "causality").verdict) == (
        "decoder",
        "fail",
    )
    assert (infer_call_plan(CausalBert()).family, infer_call_plan(CausalBert()).causal) == ("decoder", True)


def test_hints() -> None:
    said = {
        "start_pos": "start",
        "position_ids": "positions",
        "token_type_ids": "segments",
        "tgt_mask": "target_mask",
        "memory_key_padding_mask": "memory_mask",
        "attention_mask": "mask",
        "head_mask": "switch",
        "masked_seqs": "tokens",
        "masked_input_ids": "tokens",
        "masked_positions": "positions",
        "tgt": "decoder",
        "labels": "targets",
        "lengths": "lengths",
        "is_causal": "flag",
        "past_key_values": "cache",
        "banana": "unknown",
    }
    assert {name: hint(name) for name in said} == said


# habits


def test_the_part_that_gives_other_numbers_at_the_second_call_is_named() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, training=True)

    class Dropping(Core):
        def __init__(self) -> None:
            super().__init__()
            self.drop = Noisy()

        def forward(self, ids: Tensor) -> Tensor:
            return self.drop(self.logits(ids))

    class Remembering(Core):
        def __init__(self) -> None:
            super().__init__()
            self.memory = torch.zeros(D)

        def forward(self, ids: Tensor) -> Tensor:
            y = self.logits(ids) + self.head(self.memory)
            self.memory = self.memory + self.tokens(ids).mean((0, 1)).detach()
            return y

    dropping = found(infer_call_plan(Dropping()), "repeat")
    assert (dropping.verdict, "first in drop (Noisy)" in dropping.reason) == ("warn", True)
    kept = found(infer_call_plan(Remembering()), "repeat")
    assert (kept.verdict, "state kept between calls in self.memory" in kept.reason) == ("fail", True)


# proofs


def test_a_plan_that_says_something_else_is_rejected() -> None:
    module = Core()
    plan = infer_call_plan(module)
    assert fails(module, plan) == []
    for changed in (
        {"time_first": True},
        {"alignment": "own"},
        {"alignment": "short"},
        {"kind": "probabilities"},
        {"causal": False},
        {"family": "encoder"},
        {"layout": "BVT"},
        {"vocab_size": V + 1},
        {"embedding_rows": V + 5},
        {"max_positions": 39},
        {"mask_arg": "mask", "needs_mask": True},
        {"token_arg": "idx"},
        {"head": "head"},
    ):
        try:
            assert fails(module, replace(plan, **changed)), changed
        except CallError:
            continue

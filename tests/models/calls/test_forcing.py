"""Decoders that go on from their own predictions, and inputs that are delayed inside."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.batchproof import prove_on_batch
from anyformer.models.callplan import CallPlan, call_logits, infer_call_plan
from anyformer.models.proofs import prove_plan
from anyformer.training.objective import require_trainable

V, D = 23, 12


class Translator(nn.Module):
    """A GRU over the source, one over the target, step by step; told each token, or what it predicted itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.source, self.target = nn.Embedding(31, D), nn.Embedding(V, D)
        self.encoder, self.cell = nn.GRU(D, D, batch_first=True), nn.GRUCell(D, D)
        self.head = nn.Linear(D, V)

    def steps(self, src: Tensor, tgt: Tensor, ratio: float) -> Tensor:
        """Logits (B, S, V); row s follows target token s, or with the chance 1 - ratio its own prediction."""
        state, token, out = self.encoder(self.source(src))[1][0], tgt[:, 0], []
        for s in range(tgt.shape[1]):
            state = self.cell(self.target(token), state)
            out.append(self.head(state))
            if s + 1 < tgt.shape[1]:
                token = tgt[:, s + 1] if random.random() < ratio else out[-1].argmax(-1)
        return torch.stack(out, 1)


class ByRatio(Translator):
    def forward(self, src: Tensor, tgt: Tensor, teacher_forcing_ratio: float = 0.5) -> Tensor:
        return self.steps(src, tgt, teacher_forcing_ratio)


class ZerosFirst(Translator):
    """As the tutorials write it: outputs[0] stays zero, and outputs[s] are for target token s."""

    def forward(self, src: Tensor, trg: Tensor, teacher_forcing_ratio: float = 0.5) -> Tensor:
        logits = self.steps(src, trg, teacher_forcing_ratio)
        return torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], 1)


class BySampling(Translator):
    """Counts the other way round."""

    def forward(self, src: Tensor, tgt: Tensor, sampling_prob: float = 0.25) -> Tensor:
        return self.steps(src, tgt, 1 - sampling_prob)


class BySwitch(Translator):
    def forward(self, src: Tensor, tgt: Tensor, teacher_forcing: bool = False) -> Tensor:
        return self.steps(src, tgt, float(teacher_forcing))


class Required(Translator):
    def forward(self, src: Tensor, tgt: Tensor, tf_ratio: float) -> Tensor:
        return self.steps(src, tgt, tf_ratio)


class FreeInEval(Translator):
    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        return self.steps(src, tgt, float(self.training))


class FreeAlways(Translator):
    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        return self.steps(src, tgt, 0.0)


class Kept(Translator):
    """A number on the module that no argument reaches."""

    teacher_forcing_ratio = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.teacher_forcing_ratio = 0.5

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        return self.steps(src, tgt, self.teacher_forcing_ratio if self.training else 1.0)


class ByChance(Translator):
    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        return self.steps(src, tgt, 0.5)


class Forced(Translator):
    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        return self.steps(src, tgt, 1.0)


def named(plan: CallPlan, *names: str) -> list[Finding]:
    return [f for f in plan.findings if f.name in names]


@pytest.mark.parametrize(
    ("model", "value", "alignment"),
    [
        (ByRatio, 1.0, "next"),
        (ZerosFirst, 1.0, "own"),
        (BySampling, 0.0, "next"),
        (BySwitch, True, "next"),
        (Required, 1.0, "next"),
    ],
)
def test_it_is_called_with_teacher_forcing(model: type[Translator], value: object, alignment: str) -> None:
    module = model()
    plan = infer_call_plan(module)
    assert (plan.family, plan.causal, plan.alignment) == ("encoder_decoder", True, alignment)
    ((argument),) = plan.extras
    assert (argument.role, argument.value) == ("constant", value)
    assert [f.verdict for f in named(plan, "teacher forcing")] == ["ok"]
    src, tgt = torch.randint(1, 31, (3, 6)), torch.randint(1, V, (3, 9))
    require_trainable(plan)
    prove_on_batch(module, plan, src, target_ids=tgt)
    assert not [f for f in prove_plan(module, plan) if f.verdict == "fail"]
    for mode in (module.eval, module.train):
        mode()
        got = call_logits(module, plan, src, target_ids=tgt)
        torch.testing.assert_close(got, module.steps(src, tgt, 2.0))  # each logit follows its own token


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (FreeInEval, "in eval mode it goes on from its own predictions"),
        (FreeAlways, "goes on from its own predictions"),
        (Kept, "teacher_forcing_ratio = 0.5"),
        (ByChance, "by chance it goes on from its own predictions"),
    ],
)
def test_what_goes_on_from_its_own_predictions_is_refused_by_name(model: type[Translator], words: str) -> None:
    plan = infer_call_plan(model())
    (finding,) = named(plan, "teacher forcing")
    assert finding.verdict == "fail"
    assert words in finding.reason
    with pytest.raises(CallError, match="teacher forcing"):
        require_trainable(plan)


def test_a_decoder_that_is_always_told_is_left_alone() -> None:
    plan = infer_call_plan(Forced())
    assert not named(plan, "teacher forcing", "order")
    assert plan.extras == ()


# one sequence


class Core(nn.Module):
    """Causal: a token and the mean of those before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(V, D)
        self.head = nn.Linear(D, V)

    def logits(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        return self.head(x + x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(ids)


def delayed(ids: Tensor, by: int) -> Tensor:
    return torch.cat([torch.zeros_like(ids[:, :by]), ids], 1)[:, : ids.shape[1]]


class Once(Core):
    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(delayed(ids, 1))


class FirstTwice(Core):
    """Shifted right with its own first token in front: logits[0] see token 0, no others see their own."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(torch.cat([ids[:, :1], ids[:, :-1]], 1))


class Twice(Core):
    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(delayed(ids, 2))


class TwiceInTraining(Core):
    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(delayed(ids, 2) if self.training else ids)


class WordDropout(Core):
    """In training mode some tokens are hidden: what it predicts is the next token all the same."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(ids * (torch.rand(ids.shape) > 0.4) if self.training else ids)


class FreeRunning(Core):
    """One sequence; in eval mode it writes on from the first token, told nothing of the others."""

    def forward(self, ids: Tensor) -> Tensor:
        if self.training:
            return self.logits(ids)
        read = ids[:, :1]
        for _ in range(ids.shape[1] - 1):
            read = torch.cat([read, self.logits(read)[:, -1:].argmax(-1)], 1)
        return self.logits(read)


@pytest.mark.parametrize("model", [Once, FirstTwice])
def test_an_input_that_is_shifted_right_once_is_planned_so(model: type[Core]) -> None:
    module = model()
    plan = infer_call_plan(module)
    assert (plan.alignment, plan.causal) == ("own", True)
    require_trainable(plan)
    ids = torch.randint(1, V, (4, 20))
    prove_on_batch(module, plan, ids)
    longer = torch.cat([ids, ids[:, :1]], 1)
    torch.testing.assert_close(call_logits(module, plan, ids), module(longer)[:, 1:])


@pytest.mark.parametrize(
    ("model", "name", "words"),
    [
        (Twice, "order", "delayed by two"),
        (TwiceInTraining, "order", "in training mode"),
        (FreeRunning, "teacher forcing", "in eval mode it goes on from its own predictions"),
    ],
)
def test_logits_that_do_not_follow_from_the_tokens_up_to_their_own_are_refused(
    model: type[Core], name: str, words: str
) -> None:
    plan = infer_call_plan(model())
    (finding,) = named(plan, "teacher forcing", "order")
    assert (finding.name, finding.verdict) == (name, "fail")
    assert words in f"{finding.measured} {finding.reason}"
    with pytest.raises(CallError, match=name):
        require_trainable(plan)


def test_word_dropout_is_a_warning() -> None:
    plan = infer_call_plan(WordDropout())
    assert [f.verdict for f in named(plan, "teacher forcing")] == ["warn"]
    require_trainable(plan)
    assert not named(infer_call_plan(Core()), "teacher forcing", "order")

"""Ids that forward replaces by chance, and parts of a model that play no part in the logits."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.batchproof import prove_on_batch
from anyformer.models.callplan import infer_call_plan
from anyformer.training.objective import require_trainable

V, D = 40, 12


class Encoder(nn.Module):
    """Sees both sides, and its own token."""

    def __init__(self, hides: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tok, self.pos = nn.Embedding(V, D), nn.Embedding(64, D)
        self.mlm_head = nn.Linear(D, V)
        self.hides, self.mask_token_id = hides, 3

    def read(self, ids: Tensor) -> Tensor:
        if self.hides == "always" or (self.hides == "training" and self.training):
            ids = ids.masked_fill(torch.rand(ids.shape) < 0.15, self.mask_token_id)
        places = torch.arange(ids.shape[1]).expand_as(ids)
        if self.hides == "positions":
            places = places + torch.randint(0, 8, ())
        x = self.tok(ids) + self.pos(places)
        return x + x.mean(1, keepdim=True)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.mlm_head(self.read(input_ids))  # type: ignore[no-any-return]


def named(module: nn.Module, name: str) -> list[Finding]:
    return [f for f in infer_call_plan(module).findings if f.name == name]


@pytest.mark.parametrize("hides", ["always", "training"])
def test_an_encoder_that_hides_tokens_itself_is_refused(hides: str) -> None:
    module = Encoder(hides)
    (finding,) = named(module, "masking")
    assert (finding.verdict, "training mode" in finding.measured) == ("fail", hides == "training")
    with pytest.raises(CallError, match=r"replaces \d+% of its ids by chance"):
        require_trainable(infer_call_plan(module))


def test_a_short_one_that_hides_tokens_is_seen_too() -> None:
    module = Encoder("always")
    module.pos = nn.Embedding(10, D)
    assert [f.verdict for f in named(module, "masking")] == ["fail"]


@pytest.mark.parametrize("hides", ["", "positions"])
def test_other_chances_are_no_hidden_tokens(hides: str) -> None:
    assert named(Encoder(hides), "masking") == []


class TwoModels(Encoder):
    """A second model beside, whose output is not the one that is read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(D, D)
        self.judge = nn.Linear(D, width)
        self.score = nn.Linear(width, 1)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(self.read(input_ids))
        return self.mlm_head(x), self.score(self.judge(x).relu()).squeeze(-1)


@pytest.mark.parametrize(("width", "verdicts"), [(60, ["fail"]), (2, ["warn"])])
def test_a_second_model_that_would_not_be_trained_is_named(width: int, verdicts: list[str]) -> None:
    findings = named(TwoModels(width), "parts")
    assert [f.verdict for f in findings] == verdicts
    assert "judge, score" in findings[0].measured
    assert named(Encoder(), "parts") == []


class Copied(Encoder):
    """Holds the layer that its stack was copied from, and perhaps one that is never called."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(D, 2, 24, batch_first=True)
        if how == "torch":
            self.stack = nn.TransformerEncoder(self.layer, 2, enable_nested_tensor=False)
            for p in self.parameters():
                nn.init.normal_(p, std=0.2)  # the copies are told from it by no value then
        elif how == "by hand":
            self.stack = nn.Sequential(copy.deepcopy(self.layer), copy.deepcopy(self.layer))  # type: ignore[assignment]
        else:
            self.stack = nn.Sequential(nn.TransformerEncoderLayer(D, 2, 24, batch_first=True))  # type: ignore[assignment]

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.mlm_head(self.stack(self.read(input_ids)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["torch", "by hand", "forgotten"])
def test_the_layer_that_others_were_copied_from_is_no_part_that_was_forgotten(how: str) -> None:
    module = Copied(how)
    size = sum(p.numel() for p in module.layer.parameters())
    said = [f.measured for f in named(module, "prototypes")]
    assert said == ([] if how == "forgotten" else [f"layer: {size:,} weights never take part"])
    assert [f.verdict for f in named(module, "parts")] == (["warn"] if how == "forgotten" else [])


class Experts(Encoder):
    """One of many layers that are alike runs."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(D, D) for _ in range(9))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.mlm_head(self.experts[2](self.read(input_ids)))  # type: ignore[no-any-return]


class Checkpointed(Encoder):
    """What a reentrant checkpoint runs is not seen in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.between = nn.Linear(D, D)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.read(input_ids)
        return self.mlm_head(checkpoint(self.between, x, use_reentrant=True))  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", [Experts, Checkpointed])
def test_parts_that_only_seem_idle_are_not_named(model: type[Encoder]) -> None:
    module = model()
    held = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    assert named(module, "parts") == []
    assert [p.grad for p in module.parameters()] == held


class MadeAnew(Encoder):
    """Another layer at every call."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.mlm_head(nn.Linear(D, D)(self.read(input_ids)))  # type: ignore[no-any-return]


class NormedAnew(Encoder):
    """A normalisation layer at every call: its weights are 1 and 0 each time."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.mlm_head(nn.LayerNorm(D)(self.read(input_ids)))  # type: ignore[no-any-return]


HELD = nn.LayerNorm(D)


class NormedOutside(Encoder):
    """One that is held outside: training would move its weights, if it reached them."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.mlm_head(HELD(self.read(input_ids)))  # type: ignore[no-any-return]


class Listed(Encoder):
    """Gains in a plain list: they start at one."""

    def __init__(self) -> None:
        super().__init__()
        self.gains = [nn.Parameter(torch.ones(D))]

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.mlm_head(self.read(input_ids) * self.gains[0])  # type: ignore[no-any-return]


class Gated(Encoder):
    """One number, drawn anew at every call."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.mlm_head(self.read(input_ids) * nn.Parameter(torch.randn(1)))  # type: ignore[no-any-return]


class IdleBeside(NormedAnew):
    """A normalisation layer at every call, and a stack of layers that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.big = nn.Sequential(*[nn.Linear(2 * D, 2 * D) for _ in range(6)])


def test_normalisation_layers_that_are_made_in_forward_are_a_warning_as_nothing_of_them_is_lost() -> None:
    (finding,) = named(NormedAnew(), "weights")
    assert (finding.verdict, finding.measured) == ("warn", "2 stay at 1 and 0")
    assert [f.verdict for name in ("weights", "parts") for f in named(IdleBeside(), name)] == ["warn", "fail"]


@pytest.mark.parametrize(("model", "count"), [(NormedOutside, 2), (Listed, 1), (Gated, 1)])
def test_weights_that_are_held_elsewhere_or_drawn_anew_are_a_failure(model: type[Encoder], count: int) -> None:
    (finding,) = named(model(), "weights")
    assert (finding.verdict, finding.measured) == ("fail", f"{count} weights would neither be trained nor saved")
    plan = replace(infer_call_plan(Encoder()), findings=())
    with pytest.raises(CallError, match=f"{count} weights of {model.__name__} would neither be trained nor saved"):
        prove_on_batch(model(), plan, torch.randint(1, V, (3, 9)))


class BothWays(Encoder):
    """As many weights for the other direction, whose numbers are not the ones that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards, self.backwards = nn.GRU(D, D, batch_first=True), nn.GRU(D, D, batch_first=True)
        self.other = nn.Linear(D, V)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tok(input_ids)
        return self.mlm_head(self.forwards(x)[0]), self.other(self.backwards(x.flip(1))[0])


def test_layers_that_are_made_in_forward_are_a_failure_and_a_second_direction_is_said() -> None:
    (finding,) = named(MadeAnew(), "weights")
    assert (finding.verdict, finding.measured) == ("fail", "2 weights would neither be trained nor saved")
    assert [f.verdict for f in named(BothWays(), "parts")] == ["warn"]

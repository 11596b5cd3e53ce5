"""Plans that a person stated in part, or brought along: proven, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.models.callplan import infer_call_plan
from anyformer.models.planned import naming, planned, require_proven
from anyformer.models.source import LoadedModel, Provenance, load_model


class Rows(nn.Module):
    """A running sum over the tokens; ``scale`` is a constant that a caller may state. Two outputs of one shape."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(19, 8)
        self.head = nn.Linear(8, 19)

    def forward(self, ids: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        logits = self.head(self.tokens(ids).cumsum(1)) * scale
        return logits, logits.flip(1)


class Leaky(Rows):
    def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
        return self.head(self.tokens(ids) + self.tokens(ids).mean(1, keepdim=True))


def test_what_is_right_is_taken_and_what_is_wrong_refused() -> None:
    module = Rows()
    assert planned(module).logits_path == (0,)
    assert planned(module, overrides={"tokens": "ids", "logits": "output[0]"}).causal
    assert planned(module, overrides={"arguments": {"scale": 2.0}}).extras[0].value == 2.0
    with pytest.raises(CallError, match="Rows"):
        planned(module, overrides={"tokens": "scale"})


def test_a_stated_line_that_the_module_contradicts_is_found_by_the_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the search made of the overrides: the plan that comes out is proven on the module again."""
    module = Rows()
    wrong = replace(infer_call_plan(module), max_positions=3, family="encoder", causal=False)

    def infer(given: nn.Module, *, overrides: object, objective: object) -> object:
        return wrong

    monkeypatch.setattr("anyformer.models.planned.infer_call_plan", infer)
    assert planned(module) is wrong  # nothing was stated: its own inference is not doubted
    with pytest.raises(CallError, match=r"anyformer\.yaml \(or overrides=\) states is not what Rows does"):
        planned(module, overrides={"family": "encoder"})


@pytest.mark.parametrize(
    "change", [{"logits_path": (1,)}, {"causal": False}, {"embedding_rows": 7}, {"kind": "probabilities"}]
)
def test_a_plan_that_does_not_fit_is_refused(change: dict[str, object]) -> None:
    module = Rows()
    plan = infer_call_plan(module)
    require_proven(module, plan)
    with pytest.raises(CallError) as caught:
        require_proven(module, replace(plan, **change))  # type: ignore[arg-type]
    assert str(caught.value).strip()


def test_a_leak_that_the_plan_reports_is_left_to_the_objective() -> None:
    module = Leaky()
    for objective in (None, "causal", "masked"):
        require_proven(module, infer_call_plan(module, objective=objective))  # type: ignore[arg-type]
    with pytest.raises(CallError):
        require_proven(Rows(), infer_call_plan(module))


def test_the_advice_names_the_models_own_location() -> None:
    for kind, said in (("file", "anyformer repair 'my model.py'\nor"), ("module", "anyformer repair MODEL\nor")):
        loaded = LoadedModel(Rows(), Provenance(kind, "my model.py", "Rows", {}, None), {}, ())  # type: ignore[arg-type]
        with pytest.raises(CallError) as caught, naming(loaded):
            raise CallError("it leaks", "", "anyformer repair MODEL\nor")
        assert caught.value.fix == said


HEADS = """
from torch import nn
class LM(nn.Module):
    def __init__(self, vocab_size, dim, n_heads, num_key_value_heads):
        super().__init__()
        self.kv, self.size = num_key_value_heads, dim // n_heads
        self.tokens, self.k = nn.Embedding(vocab_size, dim), nn.Linear(dim, dim // 8)
        self.head = nn.Linear(dim, vocab_size)
    def forward(self, x):
        h = self.tokens(x)
        return self.head(h + self.k(h).view(*x.shape, self.kv, self.size).mean())
"""


def test_where_no_call_is_found_our_sizes_are_told(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(HEADS)
    model = load_model(tmp_path / "model.py")
    told = r"is invalid(?s:.*)n_heads=4, num_key_value_heads=4: chosen by anyformer"
    with pytest.raises(CallError, match=told), naming(model):
        planned(model.module)
    (tmp_path / "config.json").write_text('{"n_heads": 8, "num_key_value_heads": 1}')
    model = load_model(tmp_path / "model.py")
    with naming(model):
        assert planned(model.module).vocab_size == 1024

"""What an entry of the zoo says of its model, and what is expected where it says nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.zoo._references import Reference

FOLDER = Path(__file__).parent
Outcome = Literal["plan", "refused", "blocked", "blocked on the batch"]


@dataclass(frozen=True)
class Entry:
    """One model file and what is right for it."""

    name: str
    """The file's name without .py."""
    convention: str
    vocab: int
    """Width of the logits; number of classes of a classifier."""
    reference: Reference | None = None
    """(module, ids) -> right logits (B, T, V); of an encoder-decoder (module, src, tgt) -> (B, S, V)."""
    expects: dict[str, Any] = field(default_factory=dict)
    """Fields of the plan that differ from those of a plain decoder; ... where several values are right."""
    arguments: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    """Further arguments: name -> (role, shape, dtype, form), or ("constant", value); None where any is right."""
    padded: Reference | None = None
    """(module, ids, keep) -> logits that are right where keep is 1."""
    segmented: Reference | None = None
    """(module, ids, segment ids) -> right logits."""
    own_loss: Reference | None = None
    """(module, ids) -> the module's own loss, called as its user would."""
    own_loss_differs: str = ""
    """Why its own loss is not ours; empty where they agree."""
    outcome: Outcome = "plan"
    """refused: no plan. blocked: a plan that training refuses. blocked on the batch: found on the training batch."""
    says: tuple[str, ...] = ()
    """Words of the refusal, or of a finding that warns."""
    says_not: tuple[str, ...] = ()
    """Words that would name another cause."""
    ids: int | None = None
    """Number of ids that it can read, where that is not the vocabulary."""

    @property
    def path(self) -> Path:
        """The model's file."""
        return FOLDER / f"{self.name}.py"

    @property
    def family(self) -> str:
        """The plan's family that is right."""
        return str(self.expects.get("family", "decoder"))

    @property
    def rows(self) -> int:
        """Ids are below this."""
        return self.vocab if self.ids is None else self.ids


DECODER: dict[str, Any] = {
    "family": "decoder",
    "causal": True,
    "causal_by_mask": False,
    "mask_arg": None,
    "needs_targets": False,
    "logits_path": (),
    "logits_from": "output",
    "layout": "BTV",
    "time_first": False,
    "packed": "",
    "kind": "logits",
    "head": None,
    "alignment": "next",
    "target_arg": None,
    "methods": (),
}
ENCODER: dict[str, Any] = {"family": "encoder", "causal": False}
CLASSIFIER: dict[str, Any] = {"family": "classifier", "causal": ...}
SEQ2SEQ: dict[str, Any] = {"family": "encoder_decoder", "mask_arg": ...}
BY_MASK = {"causal_by_mask": True}

"""The checks of every model of the zoo: those that are not right, and no others, are blocked."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyformer.checks import run_checks, runner
from anyformer.models.source import load_model

pytestmark = pytest.mark.soak

ZOO = sorted(path for path in (Path(__file__).parent.parent / "zoo").glob("*.py") if not path.stem.startswith("_"))
NOT_RIGHT = {
    *(
        "batch_first_forgotten",
        "float_features",
        "image_vit",
        "joint_slots",
        "leaky_gpt",
        "leaky_late",
        "leaky_neutral",
    ),
    "leaky_training",
    *("pooled_states", "sentence_embedding", "state_between_calls", "text_pair"),
}
UNSURE = {"heads_attend"}
"""Wrong in a way that is warned of."""
TASKS = ("overfit", "noise", "previous token", "copy")


@pytest.mark.parametrize("path", ZOO, ids=lambda path: path.stem)
def test_what_is_not_right_is_blocked_and_nothing_else(path: Path) -> None:
    names = [name for tier in (0, 1, 2) for name, _ in runner.TIERS[tier] if name not in TASKS]
    report = run_checks(load_model(path), only=names)
    assert report.blocked == (path.stem in NOT_RIGHT), [(cause.name, cause.measured) for cause in report.causes]
    if path.stem in UNSURE:
        assert report.causes

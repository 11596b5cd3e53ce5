"""Two runs' curves and weights, compared as numbers that were written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from anyformer.runs.checkpoints import DirectoryCheckpointIO
from anyformer.runs.compare import TOLERANCE, compare_curves, compare_weights, weights_sha256
from anyformer.runs.table import COLUMNS, FILE

ROWS = {1: {"train_loss": 4.0, "learning_rate": 0.1}, 2: {"train_loss": 3.0, "val_loss": 3.5, "grad_norm": 1.0}}


def run(folder: Path, rows: dict[int, dict[str, float]]) -> Path:
    (folder / FILE).parent.mkdir(parents=True)
    lines = [",".join(COLUMNS)]
    lines += [",".join(str({"step": step, **row}.get(name, "")) for name in COLUMNS) for step, row in rows.items()]
    (folder / FILE).write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    ("changed", "exact", "verdict", "words"),
    [
        ({}, True, "ok", "2 rows equal bit for bit"),
        ({"seconds": 9.0, "tokens_per_second": 7.0}, True, "ok", "2 rows equal bit for bit"),
        ({"train_loss": 3.0000000000000004}, True, "fail", "step 2: train_loss 3.0000000000000004 instead of 3.0"),
        ({"grad_norm": 1.1}, True, "fail", "step 2: grad_norm 1.1 instead of 1.0"),
        ({"grad_norm": 1.1}, False, "ok", "losses at most 0.0e+00 apart"),
        ({"val_loss": 3.5 * (1 + 0.9 * TOLERANCE)}, False, "ok", "losses at most"),
        ({"val_loss": 3.5 * (1 + 1.1 * TOLERANCE)}, False, "fail", "step 2: val_loss"),
        ({"val_loss": float("nan")}, False, "fail", "step 2: val_loss nan instead of 3.5"),
        ({"val_loss": None}, False, "fail", "step 2: val_loss nothing instead of 3.5"),
    ],
)
def test_curves(tmp_path: Path, changed: dict[str, float], exact: bool, verdict: str, words: str) -> None:
    second = {name: value for name, value in {**ROWS[2], **changed}.items() if value is not None}
    found = compare_curves(run(tmp_path / "a", ROWS), run(tmp_path / "b", {1: ROWS[1], 2: second}), 2, exact=exact)
    assert (found.verdict, words in found.measured) == (verdict, True), found


def test_which_rows_count(tmp_path: Path) -> None:
    first, short = run(tmp_path / "a", ROWS), run(tmp_path / "b", {1: ROWS[1]})
    assert compare_curves(first, short, 1, exact=True).verdict == "ok"
    missing = compare_curves(first, short, 2, exact=True)
    assert (missing.verdict, missing.measured) == ("fail", "step 2: train_loss nothing instead of 3.0")
    assert compare_curves(first, short, 2, exact=False).verdict == "fail"
    more = run(tmp_path / "c", {1: {**ROWS[1], "val_loss": 3.9}, 2: ROWS[2], 3: ROWS[2]})  # an evaluation of its own
    assert compare_curves(first, more, 2, exact=True).verdict == "ok"
    assert compare_curves(run(tmp_path / "d", {}), short, 2, exact=True).verdict == "n/a"
    nan = {1: {"train_loss": float("nan")}}
    assert compare_curves(run(tmp_path / "e", nan), run(tmp_path / "f", nan), 1, exact=True).verdict == "ok"


def save(folder: Path, step: int, module: nn.Module) -> None:
    state = {f"model.{name}": value for name, value in module.state_dict().items()}
    path = folder / "checkpoints" / f"step-{step:08d}"
    DirectoryCheckpointIO().save_checkpoint({"state_dict": state, "global_step": step}, path)


def test_weights(tmp_path: Path) -> None:
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save(tmp_path / "a", 4, one)
    save(tmp_path / "a", 8, one)
    save(tmp_path / "b", 4, one)
    save(tmp_path / "b", 6, other)
    equal = compare_weights(tmp_path / "a", tmp_path / "b", 8, exact=True)
    assert (equal.verdict, equal.measured.startswith("of step 4 equal, sha256")) == ("ok", True)
    assert compare_weights(tmp_path / "a", tmp_path / "b", 3, exact=True).verdict == "n/a"
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        other.bias[1] += 0.25
    save(tmp_path / "b", 8, other)
    apart = compare_weights(tmp_path / "a", tmp_path / "b", 8, exact=True)
    assert (apart.verdict, apart.reason) == ("fail", "largest difference: 2.5e-01 in bias")
    assert compare_weights(tmp_path / "a", tmp_path / "b", 8, exact=False).verdict == "note"
    file = tmp_path / "b" / "checkpoints" / "step-00000008" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert compare_weights(tmp_path / "a", tmp_path / "b", 8, exact=True).verdict == "warn"


def test_the_hash_of_weights_is_of_what_they_are() -> None:
    weights = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    same = {"b": torch.ones(1), "a": torch.zeros(3, 2).t()}
    assert weights_sha256(weights) == weights_sha256(same)
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.ones(1).double()},
        {"a": torch.zeros(2, 3), "b": torch.tensor([1.0000001])},
    ]
    assert len({weights_sha256(one) for one in (weights, *others)}) == 5

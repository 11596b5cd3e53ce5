"""Whatever becomes of a checkpoint on the disk is noticed, set aside and said; the next older good one is used."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from anyformer.core.errors import CorruptCheckpoint
from anyformer.runs.checkpoints import newest_good
from tests.faults.corruptions import KINDS, STEPS, kinds_of, original, problems_of
from tests.faults.io_cases import path_of


def check(folder: Path, seed: int, count: int) -> None:
    drawn = random.Random(seed)
    original(folder)
    problems = [problem for kind in kinds_of(count, drawn) for problem in problems_of(kind, folder, drawn)]
    print(f"{count} corruptions, {len(problems)} problems")
    assert not problems, "\n".join(problems[:20])


def test_some_corruptions_are_noticed(quick_folder: Path, seed: int) -> None:
    check(quick_folder, seed, 2 * len(KINDS))


@pytest.mark.soak
def test_500_corruptions_are_noticed(tmp_path: Path, seed: int) -> None:
    check(tmp_path, seed, 500)


def test_where_none_is_good_all_are_listed(quick_folder: Path) -> None:
    original(quick_folder)
    for step in STEPS:
        (path_of(quick_folder / "run", step) / "state.pt").write_bytes(b"")
    with pytest.raises(CorruptCheckpoint, match="none of the 3") as caught:
        newest_good(quick_folder / "run")
    assert all(f"step-{step:08d}" in caught.value.detail for step in STEPS)

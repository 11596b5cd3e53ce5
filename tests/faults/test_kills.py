"""Killed anywhere and resumed, a run ends with the weights of one that was never stopped."""

from __future__ import annotations

import random

import pytest

from tests.faults.processes import Runs, kill_in_a_chain, kill_once, kinds_of, signalled
from tests.faults.server import Server


@pytest.fixture(scope="module")
def runs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(server, tmp_path_factory.mktemp("killed"))


def check(problems: list[str], count: int, what: str) -> None:
    print(f"{count} {what}, {len(problems)} of them not as they should be")
    assert not problems, "\n\n".join(problems[:10])


def test_killed_and_signalled_at_some_points(runs: Runs, seed: int) -> None:
    drawn = random.Random(seed)
    problems = kill_in_a_chain(runs, "a", 1, drawn, first="in a save")
    problems += signalled(runs, "b", drawn, twice=False)
    check(problems, 2, "points")


@pytest.mark.soak
def test_killed_at_200_points(runs: Runs, seed: int) -> None:
    drawn = random.Random(seed)
    problems = [
        problem for index, kind in enumerate(kinds_of(200)) for problem in kill_once(runs, f"k{index}", kind, drawn)
    ]
    check(problems, 200, "kills")


@pytest.mark.soak
def test_20_chains_of_10_kills(runs: Runs, seed: int) -> None:
    drawn = random.Random(seed)
    problems = [problem for index in range(20) for problem in kill_in_a_chain(runs, f"c{index}", 10, drawn)]
    check(problems, 200, "kills in chains")


@pytest.mark.soak
def test_50_signals(runs: Runs, seed: int) -> None:
    drawn = random.Random(seed)
    problems = [problem for index in range(50) for problem in signalled(runs, f"s{index}", drawn, twice=index % 3 == 2)]
    check(problems, 50, "signals")

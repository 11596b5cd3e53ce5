"""A disk that is really full: a tmpfs of a few hundred kilobytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.processes import Runs
from tests.faults.server import Server


def test_saves_on_a_full_disk(server: Server, tmp_path: Path) -> None:
    told = server.call("tests.faults.full_disk:saves_on_a_full_disk", cwd=tmp_path, folder=str(tmp_path))
    if "refused" in told:
        pytest.skip(told["refused"])
    print(f"{told['full']} of {told['levels']} levels were too full")
    assert not told["problems"], "\n".join(told["problems"])
    assert 5 <= told["full"] < told["levels"]


@pytest.mark.soak
def test_a_run_whose_disk_fills_up_goes_on_once_there_is_room(server: Server, tmp_path: Path) -> None:
    runs = Runs(server, tmp_path / "whole")
    told = server.call(
        "tests.faults.full_disk:run_on_a_full_disk",
        cwd=tmp_path,
        folder=str(tmp_path / "full"),
        whole=str(runs.path("whole")),
    )
    if "refused" in told:
        pytest.skip(told["refused"])
    assert told["code"] == 1, told["said"]
    assert "no space left" in told["said"] or "is full" in told["said"]
    assert "Traceback" not in told["said"]
    assert told["kept"], told["said"]
    assert all(name.startswith("step-") for name in told["kept"])
    assert told["resumed"] == 0, told["problem"]
    assert told["problem"] is None

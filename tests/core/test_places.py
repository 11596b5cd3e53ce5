"""A run's data is found from wherever the run is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anyformer.core.places import from_here, same_place


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Started in tmp_path/home, which holds a.txt; the current folder is tmp_path/away."""
    folder = tmp_path / "home" / "out" / "runs" / "x"
    folder.mkdir(parents=True)
    (tmp_path / "away").mkdir()
    (tmp_path / "home" / "a.txt").write_text("a")
    return folder


@pytest.mark.parametrize(
    ("output_dir", "data", "expected"),
    [
        ("out/runs", "a.txt", "home/a.txt"),
        ("./out/runs", "./a.txt", "home/a.txt"),
        ("out/runs", "*.txt", "home/*.txt"),
        ("out/runs", "b.txt", None),
        ("out/runs", "hf:wikitext", None),
        ("out/runs", "python-stdlib", None),
        ("out/runs", "<list>", None),
        ("out/runs", "~/a.txt", None),
        ("elsewhere", "a.txt", None),  # moved since: nobody knows from where
        ("../out/runs", "a.txt", None),
        ("", "a.txt", None),
        ("out/runs", None, None),
    ],
)
def test_relative_to_where_it_was_started(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_dir: str, data: Any, expected: str | None
) -> None:
    monkeypatch.chdir(tmp_path / "away")
    found = from_here(run, {"output_dir": output_dir, "data": data, "seed": 1})
    assert found == {"data": data if expected is None else str(tmp_path / expected)}


def test_an_absolute_folder_of_runs_tells_no_start(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "away")
    assert from_here(run, {"output_dir": str(run.parent), "data": "a.txt"}) == {"data": "a.txt"}


def test_the_runs_own_file_comes_before_one_of_its_name_here(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "away" / "a.txt").write_text("another")
    monkeypatch.chdir(tmp_path / "away")
    settings = {"output_dir": "out/runs", "data": "a.txt"}
    assert from_here(Path("../home/out/runs/x"), settings) == {"data": str(tmp_path / "home" / "a.txt")}
    monkeypatch.chdir(tmp_path / "home")
    assert from_here(run, settings) == {"data": "a.txt"}, "at home nothing changes"


def test_same_place(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "away")
    assert same_place("../home/a.txt", str(tmp_path / "home" / "a.txt"))
    assert same_place("hf:wikitext", "hf:wikitext")
    assert same_place(None, None)
    assert not same_place("a.txt", str(tmp_path / "home" / "a.txt")), "leads nowhere from here"
    assert not same_place("../home/a.txt", None)
    assert not same_place(None, "a.txt")

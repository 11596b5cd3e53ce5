"""Pictures and tables of what was checked: the figures themselves, and what happens without the libraries."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from anyformer.checks import CheckReport, CheckResult, run_checks
from anyformer.checks.results import Series
from anyformer.core.errors import DependencyError
from tests.checks.hosts import GPT


def report_of(*series: Series) -> CheckReport:
    return CheckReport("GPT", (CheckResult("speed", 1, "note", "fast", series=series),), 0.1)


def test_each_kind_is_drawn_as_it_was_measured(tmp_path: Path) -> None:
    report = report_of(
        Series("bars", {"ms": (1.5, 4.0)}, ("1 × 8", "8 × 8"), y_label="ms"),
        Series("line", {"loss": (3.0, 2.0, 1.0), "a guess": (2.5,)}, (1, 2, 3), x_label="step"),
        Series("map", {"0": (1.0, 0.0), "1": (0.25, 0.75)}),
    )
    figure = report.draw(str(tmp_path / "it.png"))
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [bar.get_width() for bar in shown[1].patches] == [1.5, 4.0]
    assert [line.get_ydata()[0] for line in shown[2].lines] == [3.0, 2.5]
    assert shown[3].images[0].get_array().tolist() == [[1.0, 0.0], [0.25, 0.75]]
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")
    assert report_of().draw().axes[0].get_title(loc="left") == "checks"  # without any series, how many there were


def test_what_has_figures_hands_them_on() -> None:
    report = run_checks(GPT(), tiers=(1, 2))
    drawn = {result.name for result in report.results if result.series}
    assert drawn >= {
        *("gradients", "initial weights", "memory", "speed", "attention", "residual", "sensitivity", "overfit"),
        *("noise", "previous token", "copy"),
    }
    attention = next(result for result in report.results if result.name == "attention")
    for picture in (series for series in attention.series if series.kind == "map"):
        rows = list(picture.rows.values())
        assert all(abs(sum(row) - 1) < 1e-6 for row in rows)
        assert all(weight == 0 for t, row in enumerate(rows) for weight in row[t + 1 :])
    assert attention.series[-1].x == ("blocks.0.attention", "blocks.1.attention")


def test_a_table_has_a_row_for_each_check(monkeypatch: pytest.MonkeyPatch) -> None:
    report = run_checks(GPT(), tiers=(0,))
    frame = report.table()
    assert list(frame["name"]) == [result.name for result in report.results]
    assert list(frame.columns)[:4] == ["tier", "name", "verdict", "measured"]
    without(monkeypatch, "pandas")
    assert report.table() == frame.to_dict("records")


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "matplotlib")
    with pytest.raises(DependencyError, match=r"anyformer\[ui\]"):
        report_of().draw()


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    there = importlib.import_module

    def importing(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(name, name=package)
        return there(name, *rest)

    monkeypatch.setattr(importlib, "import_module", importing)

"""What checks measured as pictures (matplotlib) and as a table (pandas where it is installed)."""

from __future__ import annotations

from typing import Any

from anyformer.checks.results import CheckReport, Series
from anyformer.core.optional import require

_COLUMNS = 2
_PANEL = (5.6, 3.4)  # inches
_BARS = 24  # bars with a name each; of more, the names are left out
_COLOURS = {"ok": "#2e7d32", "note": "#607d8b", "warn": "#b26a00", "fail": "#c62828", "n/a": "#bdbdbd"}
_LABELS = {"ok": "ok", "note": "noted", "warn": "to look at", "fail": "wrong", "n/a": "not applicable"}


def draw(report: CheckReport, path: str | None = None) -> Any:
    """A matplotlib figure: how many checks came out how, and what of them can be drawn. path: saved there, too.

    Raises DependencyError where matplotlib is not installed.
    """
    plt = require("matplotlib.pyplot", "ui", "drawing")
    panels = [(result.name, series) for result in report.results for series in result.series]
    rows = -(-(len(panels) + 1) // _COLUMNS)
    size = (_PANEL[0] * _COLUMNS, _PANEL[1] * rows)
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=size, layout="constrained", squeeze=False)
    flat = list(axes.flat)
    _verdicts(flat[0], report)
    for axis, (name, series) in zip(flat[1:], panels, strict=False):
        {"line": _lines, "bars": _bars, "map": _map}[series.kind](axis, series)
        axis.set_title(f"{name}: {series.name}" if series.name else name, fontsize=10, loc="left")
        axis.tick_params(labelsize=8)
    for axis in flat[len(panels) + 1 :]:
        axis.set_visible(False)
    figure.suptitle(report.model, x=0.01, ha="left", fontsize=11)
    if path is not None:
        figure.savefig(path, dpi=120)
    plt.close(figure)  # shown once: by the notebook, as what was returned
    return figure


def _verdicts(axis: Any, report: CheckReport) -> None:
    kinds = [kind for kind in reversed(_COLOURS) if report.count(kind)]  # type: ignore[arg-type]
    counts = [report.count(kind) for kind in kinds]  # type: ignore[arg-type]
    bars = axis.barh([_LABELS[kind] for kind in kinds], counts, color=[_COLOURS[kind] for kind in kinds])
    axis.bar_label(bars, padding=3, fontsize=8)
    axis.set_title("checks", fontsize=10, loc="left")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _lines(axis: Any, series: Series) -> None:
    for label, points in series.rows.items():
        level = len(points) == 1
        if level:
            axis.axhline(points[0], linestyle="--", linewidth=1, color="#888888")
            axis.annotate(
                label, (1, points[0]), xycoords=("axes fraction", "data"), fontsize=8, ha="right", va="bottom"
            )
        else:
            axis.plot(series.x[: len(points)] or range(len(points)), points, linewidth=1.4, label=label)
    axis.set_xlabel(series.x_label, fontsize=8)
    axis.set_ylabel(series.y_label, fontsize=8)
    if sum(len(points) > 1 for points in series.rows.values()) > 1:
        axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _bars(axis: Any, series: Series) -> None:
    ((_, heights),) = series.rows.items()
    names = [str(x) for x in series.x]
    axis.barh(range(len(heights)), heights, color="#4472a8")
    axis.invert_yaxis()
    if len(names) <= _BARS:
        axis.set_yticks(range(len(names)), names)
    else:
        axis.set_yticks([0, len(names) - 1], [names[0], names[-1]])
    axis.set_xlabel(series.y_label, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _map(axis: Any, series: Series) -> None:
    image = axis.imshow(list(series.rows.values()), cmap="viridis", vmin=0.0, aspect="auto")
    axis.figure.colorbar(image, ax=axis).ax.tick_params(labelsize=8)
    axis.set_xlabel(series.x_label, fontsize=8)
    axis.set_ylabel(series.y_label, fontsize=8)


def table(report: CheckReport) -> Any:
    """One row for each check: a pandas DataFrame, or a list of dicts where pandas is not installed."""
    columns = ("tier", "name", "verdict", "measured", "expected", "cause", "where", "under", "seconds")
    rows = [{column: getattr(result, column) for column in columns} for result in report.results]
    try:
        pandas = require("pandas")
    except ImportError:
        return rows
    return pandas.DataFrame(rows, columns=list(columns))

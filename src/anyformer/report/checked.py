"""What the checks of a model found, as one page: one file, no network, no scripts."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path

from markupsafe import Markup

from anyformer.checks.results import CheckReport, CheckResult, Series
from anyformer.checks.text import COUNTED, TIERS, verdict, way_on
from anyformer.core.errors import SettingsError
from anyformer.core.files import write_atomically
from anyformer.report.charts import Curve, Level, line_chart
from anyformer.report.page import resource, template


def write_checks(report: CheckReport, model: str, path: str | Path) -> Path:
    """Write the page and return its path. model: as the user named it. Raises SettingsError where it cannot be."""
    target = Path(path).expanduser()
    try:
        write_atomically(target, render_checks(report, model).encode("utf-8", errors="replace"))
    except OSError as error:
        raise SettingsError(
            f"{target} cannot be written: {error.strerror or error}", fix="--html FILE, in a folder that is there"
        ) from error
    return target


def render_checks(report: CheckReport, model: str) -> str:
    """The page as text."""
    mark, sentence = verdict(report)
    tiers = sorted({result.tier for result in report.results})
    page: str = template("checks.html.j2").render(
        css=Markup(resource("page.css")),
        report=report,
        name=model,
        when=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        seconds=f"{report.seconds:.1f}",
        mark=mark,
        tone="bad" if report.blocked else "good",
        sentence=sentence[:1].upper() + sentence[1:],
        figures=[(words, str(report.count(kind))) for kind, words in COUNTED if report.count(kind)][:4],
        causes=[(cause, ", ".join(result.name for result in report.symptoms(cause))) for cause in report.causes],
        curves=[(result, chart) for result in report.results if (chart := _curves(result))],
        tiers=[(TIERS[tier], [r for r in report.results if r.tier == tier]) for tier in tiers],
        next=way_on(report, model),
    )
    return page


def _curves(result: CheckResult) -> Markup:
    """The losses of a run of tier 3, and what a guess costs."""
    charts = [_chart(result, series) for series in result.series if result.tier == 3 and series.kind == "line"]
    return Markup("").join(charts)


def _chart(result: CheckResult, series: Series) -> Markup:
    curves: list[Curve] = []
    levels: list[Level] = []
    for label, values in series.rows.items():
        if len(values) == 1:
            levels.append(Level(label, values[0]))
        else:
            points = [(float(x), y) for x, y in zip(series.x, values, strict=False) if math.isfinite(y)]
            curves.append(Curve(label, points, "quiet" if curves else "main"))
    title = " · ".join(filter(None, (result.name, series.name)))
    return line_chart(curves, levels, title=title, number=lambda value: f"{value:.2f}", height=220)

"""Gathers what a run's folder holds and writes ``report.html``: one file, no network, no scripts.

Every section is gathered on its own: a manifest that is missing, cut short or of another version costs the section that
needed it, never the page.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from anyformer.core.errors import SourceError
from anyformer.core.files import write_atomically
from anyformer.core.view import printable
from anyformer.report import sections
from anyformer.report.charts import Curve, Level, line_chart, short
from anyformer.report.kinds import words
from anyformer.report.words import count, decimal, number
from anyformer.runs.directory import MANIFEST, unwritable
from anyformer.runs.table import FILE, read_metrics

REPORT = "report.html"
_DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, OSError)
_FILES = (
    ("run.json", "everything on this page, for programs"),
    ("settings.yaml", "the settings, for --config"),
    ("model", "the model's source as it was"),
    ("tokenizer", "the tokenizer"),
    ("checkpoints", "weights and training state, hashed"),
    ("metrics/metrics.csv", "the curves"),
    ("samples.jsonl", "the samples"),
    ("export", "exported models"),
)


@dataclass(frozen=True)
class Charts:
    """The drawn curves; empty where there is nothing to draw."""

    loss: Markup
    loss_log: Markup
    learning_rate: Markup
    throughput: Markup
    levels: bool


def write_report(run_path: str | Path) -> Path:
    """Write ``report.html`` into a run's folder from its run.json, metrics and samples, and return its path.

    Whatever of these is missing or damaged is said on the page. Raises SourceError where there is no such folder,
    TrainingError where the page cannot be written.
    """
    folder = Path(run_path).expanduser()
    if not folder.is_dir():
        raise SourceError(f"there is no run folder {folder}")
    target = folder / REPORT
    try:
        write_atomically(target, render(folder).encode("utf-8", errors="replace"))
    except OSError as error:
        raise unwritable(folder, error) from error
    return target


def render(folder: Path) -> str:
    """The page as text."""
    troubles: list[str] = []

    def guarded(what: str, gather: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return gather()
        except _DAMAGE as error:
            troubles.append(f"{what} could not be read: {type(error).__name__}: {error}")
            return otherwise

    run = guarded(MANIFEST, lambda: _manifest(folder), {})
    rows = guarded(str(FILE), lambda: read_metrics(folder / FILE), [])
    samples = guarded("samples.jsonl", lambda: sections.samples(folder / "samples.jsonl"), [])
    no_charts = Charts(Markup(""), Markup(""), Markup(""), Markup(""), False)
    unknown = sections.Verdict("plain", "–", "What came of this run is not recorded", "")
    name = run.get("name") if isinstance(run.get("name"), str) else folder.resolve().name
    page: str = template("page.html.j2").render(
        css=Markup(resource("page.css")),
        name=name,
        example=guarded("model", lambda: sections.is_example(run), False),
        subtitle=guarded("created", lambda: sections.subtitle(run), ""),
        verdict=guarded("results", lambda: sections.verdict(run, rows), unknown),
        figures=guarded("results", lambda: sections.figures(run, rows), []),
        charts=guarded("metrics", lambda: _charts(run, rows), no_charts),
        unit=words(run).unit,
        caption=words(run).caption,
        samples=samples,
        findings=guarded("findings", lambda: sections.findings(run), []),
        facts=guarded("facts", lambda: sections.facts(run), []),
        settings=guarded("settings", lambda: sections.settings(run), []),
        effective=guarded("effective", lambda: sections.effective(run), []),
        command=guarded("command", lambda: str(run.get("command") or ""), ""),
        files=guarded("files", lambda: _files(folder), []),
        machine=guarded("machine", lambda: sections.machine(run), []),
        troubles=troubles,
    )
    return page


def template(name: str) -> Any:
    """A page of this folder; what it shows is escaped, and stripped of control characters."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    return environment.from_string(resource(name))


def _shown(value: Any) -> Any:
    """Every value that the template writes comes by here, before it is escaped: no control characters on the page."""
    return Markup(printable(value)) if isinstance(value, Markup) else printable(str(value))


def resource(name: str) -> str:
    """A file of this folder."""
    return resources.files("anyformer.report").joinpath(name).read_text(encoding="utf-8")


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict):
        raise TypeError(f"it holds a {type(manifest).__name__}")
    return manifest


def _charts(run: dict[str, Any], rows: list[dict[str, float | None]]) -> Charts:
    def curve(column: str, name: str, style: str) -> Curve:
        # a row without a value is no gap: held-out loss is measured at few of the steps
        points = [(row["step"], row[column]) for row in rows]
        return Curve(name, [(step, y) for step, y in points if step is not None and y is not None], style)

    loss = [curve("train_loss", "train", "quiet"), curve("val_loss", "held-out", "main")]
    levels = [
        Level(name, value)
        for key, name in words(run).levels
        if (value := number(sections.results(run).get(key))) is not None
    ]
    title = f"Loss in nats per {words(run).unit}"
    return Charts(
        loss=line_chart(loss, levels, title=title, number=decimal, height=320),
        loss_log=line_chart(
            loss, levels, title=f"{title}, both axes logarithmic", number=decimal, height=320, log=True
        ),
        learning_rate=line_chart(
            [curve("learning_rate", "", "main")], title="Learning rate", number=_rate, height=180, from_zero=True
        ),
        throughput=line_chart(
            [curve("tokens_per_second", "", "main")],
            title="Tokens per second",
            number=count,
            height=180,
            from_zero=True,
        ),
        levels=bool(levels),
    )


def _rate(value: float) -> str:
    return short(float(f"{value:.2g}"))


def _files(folder: Path) -> list[tuple[str, str, str]]:
    """(name, link, what it holds) of what is there."""
    found = []
    for name, what in _FILES:
        path = folder / name
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            shown = f"{name}/" if path.is_dir() else name
            found.append((shown, quote(shown), what))
    return found

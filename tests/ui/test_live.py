"""What a terminal shows, drawn into a console of known size."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from anyformer.core.findings import Finding
from anyformer.core.protocols import Progress, View
from anyformer.ui.live import RichView, _MovingLine


def console(width: int, colour: str | None = None) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=colour, highlight=False)


def text(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def drawn(progress: Progress, width: int) -> str:
    target = console(width)
    moving = _MovingLine()
    moving.progress(progress)
    target.print(moving)
    return text(target)


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 160])
def test_the_bar_is_one_line_at_any_width(width: int) -> None:
    line = drawn(Progress(1204, 2000, loss=3.412, rate=11300, seconds_left=58.2), width)
    assert line.count("\n") == 1
    assert len(line.rstrip("\n")) <= width
    assert "1,204/2,000" in line


def test_a_wide_bar_has_all_figures() -> None:
    line = drawn(Progress(1204, 2000, loss=3.412, rate=11300, seconds_left=58.2), 100)
    for figure in ("step 1,204/2,000", "━", "60 %", "loss 3.41", "11,300 tokens/s", "0:58 left"):
        assert figure in line


def test_time_left_goes_on_between_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("anyformer.ui.live.time.monotonic", lambda: clock[0])
    target, moving = console(100), _MovingLine()
    moving.progress(Progress(1, 10, seconds_left=58))
    clock[0] += 5
    target.print(moving)
    assert "0:53 left" in text(target)


def test_lines_stay_and_the_finished_bar_becomes_one() -> None:
    target = console(100)
    with RichView(target) as live:
        view: View = live
        view.line("anyformer demo")
        view.status("loading …")
        view.stage("model", "example:gpt", "1.9 M parameters")
        view.finding(Finding("vocabulary", "warn", "too small"))
        view.progress(Progress(10, 10, loss=3.0))
        view.line("done")
    shown = text(target)
    for line in ("anyformer demo\n", "  model      example:gpt", "  ! vocabulary: too small\n", "step 10/10", "done\n"):
        assert line in shown
    assert shown.index("step 10/10   100 %   loss 3.00\n") < shown.index("done")


def test_markup_in_names_is_text() -> None:
    target = console(100)
    with RichView(target) as view:
        view.stage("model", "[bold]x[/bold].py", "[/]")
        view.line("[red]a")
    assert "[bold]x[/bold].py" in text(target)
    assert "[red]a" in text(target)


def test_marks_are_coloured_only_where_colour_is_wanted() -> None:
    for colour, expected in (("standard", True), (None, False)):
        target = console(100, colour)
        RichView(target).finding(Finding("x", "fail", "1"))
        assert ("\x1b[1;31m✗" in text(target)) is expected
        assert "✗" in text(target)


def test_nothing_shown_steers_the_terminal() -> None:
    target = console(60)
    evil = "a\x1b]0;t\x07b\x9b2J\u202ec"
    with RichView(target) as view:
        written = text(target)  # what the moving line itself sends
        view.close()
        view.stage("data", evil, evil)
        view.finding(Finding("n" + evil, "note", evil, reason=evil))
        view.line(evil)
        view.line(evil * 9)
    shown = text(target)[len(written) :]
    assert shown.count(r"\x1b]0;t\x07b\x9b2J\u202ec") >= 6
    assert not set(shown) & set("\x07\x9b\u202e")
    assert "\x1b]" not in shown
    moving = _MovingLine()
    moving.status(evil)
    target = console(60)
    target.print(moving)
    assert r"\x1b]0;t\x07" in text(target)
    assert "\x1b]" not in text(target)

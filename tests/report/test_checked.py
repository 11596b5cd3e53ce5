"""The page of the checks: causes with what follows from them, every check, the way on; what a model says is text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from anyformer import api, cli
from anyformer.checks import CheckReport, CheckResult, run_checks
from anyformer.core.errors import SettingsError
from anyformer.report.checked import render_checks, write_checks
from tests.checks.hosts import GPT, NoMask


class Unmasked(GPT):
    attention = NoMask


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data.strip())


def words_of(page: str) -> str:
    parser = _Words()
    parser.feed(page)
    assert parser.open == []
    return re.sub(r"\s+", " ", " ".join(parser.words))


def test_a_page_tells_the_cause_its_symptoms_and_every_check() -> None:
    report = run_checks(Unmasked())
    words = words_of(render_checks(report, "model.py"))
    assert "Not right as it is" in words
    assert "with it prefix, future gradient" in words
    assert "it blocks training" in words
    assert "anyformer repair model.py" in words
    for result in report.results:
        assert f"{result.name} {result.measured}" in words


def test_a_right_model_has_nothing_under_what_is_wrong() -> None:
    page = render_checks(run_checks(GPT(), tiers=(0,)), "model.py")
    assert "Nothing wrong found" in words_of(page)
    assert "What is wrong" not in page
    assert "anyformer train model.py --data FILE" in page
    assert not re.search(r"<script|https?://", page)


def test_what_a_model_says_is_text() -> None:
    report = CheckReport("<b>M</b>", (CheckResult("call", 0, "fail", "<script>1</script>\x1b[2J"),), 0.1)
    page = render_checks(report, "<i>")
    assert "<script>" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;1&lt;/script&gt;" in page


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "checks.html"
    assert cli.main(["check", "example:gpt", "--tier", "0", "--html", str(page), "--quiet"]) == 0
    assert "example:gpt" in words_of(page.read_text(encoding="utf-8"))
    assert cli.main(["check", "example:gpt", "--tier", "0", "--html", str(tmp_path / "none" / "x.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_object_is_named_by_its_class(tmp_path: Path) -> None:
    report = api.check(GPT(), settings=api.CheckSettings(tier=0, html=str(tmp_path / "a.html")))
    assert not report.blocked
    assert "GPT" in (tmp_path / "a.html").read_text(encoding="utf-8")
    with pytest.raises(SettingsError, match="cannot be written"):
        write_checks(report, "x", tmp_path / "none" / "a.html")

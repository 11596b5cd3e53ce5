"""The form of a notebook: shown, clicked, run again."""

from __future__ import annotations

import html
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from anyformer.core.errors import DependencyError, TrustError
from anyformer.core.view import QuietView
from anyformer.models.source import load_model
from anyformer.ui.trust_form import TrustForm
from tests.gist_server import CONFIG, ID, MODEL, GistServer

GIST = f"gist:{ID}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    with GistServer() as running:
        monkeypatch.setenv("ANYFORMER_GIST_API", running.url)
        monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("GITHUB_TOKEN", raising=False)
        running.put()
        yield running


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    import IPython.display

    displayed: list[Any] = []
    monkeypatch.setattr(IPython.display, "display", displayed.append)
    return displayed


def asked(form: TrustForm | None = None) -> TrustError:
    with pytest.raises(TrustError, match="waits for your answer") as caught:
        load_model(GIST, approve=form or TrustForm(), view=QuietView())
    return caught.value


def button(form: Any, words: str) -> Any:
    (found,) = [b for b in form.children[2].children if b.description.startswith(words)]
    return found


class Parsed(HTMLParser):
    """What a browser makes of the form: the tags that there are, and the text of each row of source."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[str] = []
        self.feed("".join(part.value for part in (form.children[0], form.children[1], form.children[3])))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "div" and "row" in (dict(attrs).get("class") or ""):
            self.rows.append("")

    def handle_data(self, data: str) -> None:
        if self.rows:
            self.rows[-1] += data


def text(form: Any) -> str:
    """Everything that is read, without marks."""
    values = "".join(part.value for part in (form.children[0], form.children[1], form.children[3]))
    return html.unescape(re.sub("<[^>]*>", "", values))


def test_nothing_runs_before_the_click_and_the_next_run_loads(server: Any, shown: list[Any], tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    server.put({"model.py": f"open({str(marker)!r}, 'w').close()\n{MODEL}", "config.json": CONFIG})
    form = TrustForm()
    error = asked(form)
    assert "answer in the form above, then run this cell again" in str(error)
    assert not marker.exists()
    assert shown == [form.form]
    seen = text(form.form)
    wanted = ("Run this code from a network?", "octocat", "revision", "sha256", "Review: ", "model.py, 16 lines")
    places = [seen.index(words) for words in wanted]
    assert places == sorted(places)
    assert "a warning, not a boundary" in seen
    yes = button(form.form, "Yes")
    yes.click()
    assert "Approved. Run the cell again" in form.form.children[3].value
    assert yes.disabled
    assert not marker.exists()
    load_model(GIST, approve=TrustForm(), view=QuietView())
    assert marker.exists()
    assert len(shown) == 1


def test_no_is_no(server: Any, shown: list[Any]) -> None:
    form = TrustForm()
    asked(form)
    button(form.form, "No").click()
    assert button(form.form, "Yes").disabled
    assert "nothing has run" in text(form.form)
    asked(form)
    assert len(shown) == 2


def test_other_content_is_asked_for_again(server: Any, shown: list[Any]) -> None:
    form = TrustForm()
    asked(form)
    button(form.form, "Yes").click()
    server.put({"model.py": MODEL.replace("width=8", "width=9"), "config.json": CONFIG})
    asked(form)
    seen = text(shown[1])
    assert "Changed since you approved it on" in seen
    assert "-    def __init__(self, vocab_size=300, width=8):" in seen
    assert "+    def __init__(self, vocab_size=300, width=9):" in seen


def test_the_first_lines_and_every_line_on_request(server: Any, shown: list[Any]) -> None:
    more = "".join(f"\n\ndef helper_{i}(x):\n    return x * {i}  # {'wide ' * 60}end\n\n" for i in range(3))
    server.put({"model.py": MODEL + more, "other.py": "y = '''\n<b>\n'''\n", "config.json": CONFIG})
    asked()
    (form,) = shown
    # line 20 is blank: the count of lines holds wherever the cut falls
    assert [row.rstrip(" ") for row in Parsed(form).rows[:20]] == (MODEL + more).split("\n")[:20]
    assert "model.py, the first 20 of 30 lines" in text(form)
    assert "other.py, 3 lines" not in text(form)
    button(form, "Show all 33 lines of 2 files").click()
    rows = Parsed(form).rows
    assert len(rows) == 33
    assert f"return x * 2  # {'wide ' * 60}end" in text(form), "no part of a long line is left out"
    assert "<b>" in rows[31]
    assert button(form, "Show all").disabled


def test_a_short_file_is_shown_whole(server: Any, shown: list[Any]) -> None:
    asked()
    assert [b.description for b in shown[0].children[2].children] == ["Yes, run it", "No"]


HOSTILE = """# <script>alert(1)</script> <img src=x onerror=alert(1)> &lt;
name = '</div></span><script>alert(2)</script>'
# \u202e turned
import os  # <iframe>
"""


def test_text_of_a_gist_is_never_html(server: Any, shown: list[Any]) -> None:
    def edit(record: dict[str, Any]) -> None:
        record["description"] = "<script>alert(3)</script>"

    server.put({"model.py": HOSTILE + MODEL, "config.json": CONFIG})
    asked()
    button(shown[0], "Yes").click()
    server.put({"model.py": MODEL + HOSTILE * 5, "config.json": CONFIG}, edit=edit)
    asked()
    form = shown[1]
    button(form, "Show all").click()
    tags = {"style", "div", "h3", "h4", "p", "span", "code", "ul", "li", "b"}
    assert Parsed(form).tags <= tags
    assert "<script>alert(3)</script>" in text(form)
    assert "</div></span><script>alert(2)</script>" in text(form)
    assert "\u202e" not in text(form)
    assert "\\u202e turned" in text(form)


def test_remarks_on_one_line_are_one_entry_and_many_are_folded(server: Any, shown: list[Any]) -> None:
    bad = "import os, socket\n" + "".join(f"os.system('{i}')\n" for i in range(14))
    server.put({"model.py": bad + MODEL, "config.json": CONFIG})
    asked()
    value = shown[0].children[0].value
    assert value.count("<b>model.py:1</b>") == 1
    assert value.count("<li>") == 15
    assert (
        value.index("<b>model.py:12</b>") < value.index("remarks on 3 more lines") < value.index("<b>model.py:13</b>")
    )


def test_an_approval_that_cannot_be_kept_is_said(server: Any, shown: list[Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(TrustError):
        load_model(GIST, approve=TrustForm(tmp_path / "file"), view=QuietView())
    button(shown[0], "Yes").click()
    assert "not remembered" in text(shown[0])
    assert "trust=True" in text(shown[0])
    assert not button(shown[0], "Yes").disabled


def test_a_notebook_prints_the_message_and_no_traceback(server: Any, shown: list[Any]) -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    error = asked()
    shell = InteractiveShell()
    with capture_output() as printed:
        try:
            raise error
        except TrustError:
            shell.showtraceback()
    assert printed.stdout.strip().split("\n") == f"TrustError: {error}".split("\n")


def test_without_ipywidgets(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(DependencyError, match="ipywidgets"):
        load_model(GIST, approve=TrustForm(), view=QuietView())

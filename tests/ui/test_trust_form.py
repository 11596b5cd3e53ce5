"""The form of a notebook: shown, clicked, run again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from anyformer.core.errors import DependencyError, TrustError
from anyformer.core.view import QuietView
from anyformer.models.source import load_model
from anyformer.ui.trust_form import TrustForm

sys.path.append(str(Path(__file__).parent.parent / "models"))

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


def test_nothing_runs_before_the_click_and_the_next_run_loads(server: Any, shown: list[Any], tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    server.put({"model.py": f"open({str(marker)!r}, 'w').close()\n{MODEL}", "config.json": CONFIG})
    form = TrustForm()
    with pytest.raises(TrustError, match="press the button in the form above"):
        load_model(GIST, approve=form, view=QuietView())
    assert not marker.exists()
    assert shown == [form.form]
    short, folded, (button, said) = form.form.children[0], form.form.children[1], form.form.children[2].children
    assert "it ran" in short.value
    assert "a warning, not a boundary" in folded.children[0].value
    assert folded.selected_index is None
    button.click()
    assert said.value == "approved: run the cell again"
    assert button.disabled
    assert not marker.exists()
    load_model(GIST, approve=TrustForm(), view=QuietView())
    assert marker.exists()
    assert len(shown) == 1


def test_other_content_is_asked_for_again(server: Any, shown: list[Any]) -> None:
    form = TrustForm()
    with pytest.raises(TrustError):
        load_model(GIST, approve=form, view=QuietView())
    form.form.children[2].children[0].click()
    server.put({"model.py": MODEL + "\n# changed\n", "config.json": CONFIG}, revision="b" * 40)
    with pytest.raises(TrustError, match="waits for your answer"):
        load_model(GIST, approve=form, view=QuietView())
    assert "changed since it was approved" in shown[1].children[0].value


def test_without_ipywidgets(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(DependencyError, match="ipywidgets"):
        load_model(GIST, approve=TrustForm(), view=QuietView())

"""The question whether code from a network may run, as a form in a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anyformer.core.errors import TrustError
from anyformer.core.optional import require
from anyformer.models.trust import TrustRequest, remember


class TrustForm:
    """``load_model("gist:ID", approve=TrustForm())``: the code, its review and a button, in place of the prompt.

    A cell cannot wait for a click: the first call shows the form and raises TrustError; the click remembers the
    approval of this very content, and the cell, run again, loads without a question.
    cache_dir: where approvals are kept; the user's cache where not given.
    Raises DependencyError without ipywidgets.
    """

    def __init__(self, cache_dir: str | Path | None = None) -> None:
        self._cache_dir = cache_dir
        self.form: Any = None
        """The widget that was shown last."""

    def __call__(self, request: TrustRequest) -> bool:
        widgets = require("ipywidgets", purpose="the form that asks before code from a network runs", extra="ui")
        display = require("IPython.display", purpose="showing that form", extra="ui").display
        self.form = self._drawn(widgets, request)
        display(self.form)
        raise TrustError(
            f"gist {request.gist.id} waits for your answer",
            "nothing of it has run",
            "press the button in the form above, then run this cell again",
        )

    def _drawn(self, widgets: Any, request: TrustRequest) -> Any:
        """The first lines, the whole source folded below, the button and what came of it."""
        yes = widgets.Button(description="Run this code", button_style="warning")
        said = widgets.Label("")
        short, whole = (self._text(widgets, request.lines(whole=every)) for every in (False, True))
        folded = widgets.Accordion(children=[whole], titles=("the whole source and review",), selected_index=None)

        def approve(_: Any) -> None:
            trouble = remember(request, self._cache_dir)
            yes.disabled = not trouble
            said.value = f"{trouble}" if trouble else "approved: run the cell again"

        yes.on_click(approve)
        return widgets.VBox([short, folded, widgets.HBox([yes, said])])

    @staticmethod
    def _text(widgets: Any, lines: list[str]) -> Any:
        """Plain text, scrolled; never interpreted as HTML."""
        layout = widgets.Layout(width="100%", height=f"{min(30, len(lines) + 1) * 1.45:.0f}em")
        return widgets.Textarea("\n".join(lines), disabled=True, layout=layout)

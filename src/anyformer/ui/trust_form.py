"""The question whether code from a network may run, as a form in a notebook."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from anyformer.core.errors import TrustError
from anyformer.core.optional import require
from anyformer.models.network.review import NOT_A_BOUNDARY, decode, source_lines
from anyformer.models.trust import FIRST_LINES, TrustRequest, remember, safe

_PURPOSE = "the form that asks before code from a network runs"
_FIRST_REMARKS = 12  # lines of source with remarks that are seen without unfolding
# Colours come from the notebook's theme, light or dark, and are the text's own where it names none. Long lines wrap:
# nothing hides to the right of what is seen.
_STYLE = """<style>
.anyformer-trust { line-height: 1.45; overflow-wrap: anywhere; margin-bottom: .7em; }
.anyformer-trust h3 { font-size: 1.25em; font-weight: 600; line-height: 1.3; margin: 0 0 .2em; }
.anyformer-trust p { margin: 0 0 .6em; }
.anyformer-trust h4 { font-size: 1em; font-weight: 600; margin: 1em 0 .3em; }
.anyformer-trust .facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .1em 1em; }
.anyformer-trust .facts > :nth-child(odd) { opacity: .75; }
.anyformer-trust code, .anyformer-trust .pane {
  font-family: var(--jp-code-font-family, monospace); font-size: .95em; color: inherit; background: none; padding: 0; }
.anyformer-trust .review { border-left: 4px solid var(--jp-border-color1, gray); padding-left: .8em; margin-top: 1em; }
.anyformer-trust .review h4 { margin-top: 0; }
.anyformer-trust .remarked { border-color: var(--jp-warn-color1, darkorange); }
.anyformer-trust ul { margin: 0; padding-left: 1.2em; }
.anyformer-trust li { margin: 0 0 .3em; }
.anyformer-trust li code { display: block; opacity: .75; }
.anyformer-trust summary { cursor: pointer; margin: .2em 0 .4em; }
.anyformer-trust .pane { border: 1px solid var(--jp-border-color1, gray); padding: .4em; max-height: 32em;
  overflow-y: auto; }
.anyformer-trust .tall { max-height: 60em; }
.anyformer-trust .row { display: grid; grid-template-columns: 3.5em minmax(0, 1fr); white-space: pre-wrap; }
.anyformer-trust .row::before { content: attr(data-n); opacity: .6; text-align: right; padding-right: 1em; }
.anyformer-trust .change { grid-template-columns: minmax(0, 1fr); }
.anyformer-trust .change::before { content: none; }
.anyformer-trust .added { background: rgba(46, 160, 67, .2); }
.anyformer-trust .gone { background: rgba(248, 81, 73, .2); }
.anyformer-trust .place { opacity: .75; }
.anyformer-trust :is(.k, .kn, .ow) { color: var(--jp-mirror-editor-keyword-color, inherit); font-weight: bold; }
.anyformer-trust :is(.kc, .nb, .bp) { color: var(--jp-mirror-editor-builtin-color, inherit); }
.anyformer-trust :is(.s1, .s2, .sd, .sa, .se, .si) { color: var(--jp-mirror-editor-string-color, inherit); }
.anyformer-trust :is(.mi, .mf, .mh) { color: var(--jp-mirror-editor-number-color, inherit); }
.anyformer-trust :is(.c1, .ch) { color: var(--jp-mirror-editor-comment-color, inherit); font-style: italic; }
</style>"""


class WaitsForAnswer(TrustError):
    """The form is shown; a notebook prints the message without the lines of code that led to it."""

    def _render_traceback_(self) -> list[str]:
        return [f"TrustError: {self}"]


class TrustForm:
    """``load_model("gist:ID", approve=TrustForm())``: the code, its review and buttons, in place of the prompt.

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
        widgets = require("ipywidgets", purpose=_PURPOSE, extra="ui")
        display = require("IPython.display", purpose=_PURPOSE, extra="ui").display
        self.form = self._drawn(widgets, request)
        display(self.form)
        raise WaitsForAnswer(
            f"gist {request.gist.id} waits for your answer",
            "nothing of it has run",
            "answer in the form above, then run this cell again",
        )

    def _drawn(self, widgets: Any, request: TrustRequest) -> Any:
        """What is asked and about what, the first lines, the buttons, and what came of them."""
        full = widgets.Layout(width="100%", margin="0")
        asked = widgets.HTML(_asked(request), layout=full)
        source = widgets.HTML(_source(request, whole=False), layout=full)
        said = widgets.HTML("", layout=full)
        # as wide as their words
        yes, every, no = (
            widgets.Button(description=words, button_style=style, layout=widgets.Layout(width="auto"))
            for words, style in (("Yes, run it", "warning"), (_more(request), ""), ("No", ""))
        )

        def approve(_: Any) -> None:
            trouble = remember(request, self._cache_dir)
            yes.disabled = no.disabled = not trouble
            way_out = "; to run it all the same: load_model(..., trust=True)"
            said.value = _said(f"{trouble}{way_out}" if trouble else "Approved. Run the cell again: it will not ask.")

        def refuse(_: Any) -> None:
            yes.disabled = no.disabled = True
            said.value = _said("Not approved, and nothing has run. To be asked again, run the cell again.")

        def show(_: Any) -> None:
            source.value = _source(request, whole=True)
            every.disabled = True

        yes.on_click(approve)
        no.on_click(refuse)
        every.on_click(show)
        buttons = [yes, every, no] if _more(request) else [yes, no]
        row = widgets.HBox(buttons, layout=widgets.Layout(flex_flow="row wrap"))
        return widgets.VBox([asked, source, row, said], layout=widgets.Layout(width="100%"))


def _escaped(text: str) -> str:
    """Text of a gist is never interpreted: neither as HTML nor as control characters."""
    return html.escape(safe(text))


def _said(words: str) -> str:
    return f'<div class="anyformer-trust" role="status"><b>{_escaped(words)}</b></div>'


def _lines(request: TrustRequest) -> dict[str, list[str]]:
    return {name: source_lines(decode(content)) for name, content in request.code.items()}


def _more(request: TrustRequest) -> str:
    """Words of the button for the whole source; empty where all of it is shown."""
    files = _lines(request)
    total = sum(len(text) for text in files.values())
    if len(files) == 1:
        return f"Show all {total:,} lines" if total > FIRST_LINES else ""
    return f"Show all {total:,} lines of {len(files)} files"


def _asked(request: TrustRequest) -> str:
    """The question, whose code it is, its review, and what changed since an earlier approval."""
    gist = request.gist
    files = ", ".join(request.code) + ("" if len(request.code) == 1 else " (all can be imported)")
    facts = [
        ("owner", _escaped(gist.owner_shown)),
        ("described as", _escaped(gist.description)),
        ("gist", f"<code>{_escaped(gist.id)}</code>"),
        ("revision", f"<code>{_escaped(gist.revision or 'unknown')}</code>"),
        ("sha256", f"<code>{_escaped(request.sha256)}</code>"),
        ("code", _escaped(files)),
    ]
    table = "".join(f"<span>{name}</span><span>{value}</span>" for name, value in facts if value)
    return (
        f'{_STYLE}<div class="anyformer-trust"><h3>Run this code from a network?</h3>'
        f'<p>Nothing of it has run yet.</p><div class="facts">{table}</div>{_review(request)}{_changes(request)}</div>'
    )


def _review(request: TrustRequest) -> str:
    """What the review found, line by line of the source; a long list is folded, with its length said."""
    words: dict[tuple[str, str], list[str]] = {}
    for remark in request.remarks:
        place = f"{remark.file}:{remark.line}" if remark.line else remark.file
        words.setdefault((place, remark.code), []).append(remark.words)
    listed = [
        f"<li><b>{_escaped(place)}</b> {_escaped('; '.join(found))}"
        + (f"<code>{_escaped(code)}</code></li>" if code else "</li>")
        for (place, code), found in words.items()
    ]
    first, rest = listed[:_FIRST_REMARKS], listed[_FIRST_REMARKS:]
    body = f"<ul>{''.join(first)}</ul>" if first else ""
    if rest:
        body += f"<details><summary>remarks on {len(rest)} more lines</summary><ul>{''.join(rest)}</ul></details>"
    kind = "review remarked" if first else "review"
    summary = request.summary.removeprefix("review: ")
    return f'<div class="{kind}"><h4>Review: {summary}</h4>{body}<p>{_escaped(NOT_A_BOUNDARY)}</p></div>'


def _changes(request: TrustRequest) -> str:
    if request.previous is None:
        return ""
    rows = ""
    for line in request.difference:
        named = line.startswith(("--- ", "+++ ", "@@ "))
        kind = "place" if named else {"+": "added", "-": "gone"}.get(line[:1], "")
        rows += f'<div class="row change {kind}">{html.escape(line) or " "}</div>'
    when, revision = request.previous.when[:10], (request.previous.revision or "unknown")[:12]
    title = f"Changed since you approved it on {when} (revision {revision})"
    return f'<h4>{_escaped(title)}</h4><div class="pane tall">{rows}</div>'


def _source(request: TrustRequest, *, whole: bool) -> str:
    """The first lines of the main file, or every line of every file."""
    shown = ""
    for number, (name, text) in enumerate(_lines(request).items()):
        if number and not whole:
            break
        kept = text if whole else text[:FIRST_LINES]
        part = f", the first {len(kept)} of {len(text):,} lines" if len(kept) < len(text) else f", {len(text):,} lines"
        rows = "".join(
            f'<div class="row" data-n="{n}"><span>{line or " "}</span></div>'
            for n, line in enumerate(_highlighted([safe(line) for line in kept]), 1)
        )
        height = "" if whole else " tall"
        shown += f'<h4>{_escaped(name)}{part}</h4><div class="pane{height}">{rows}</div>'
    return f'<div class="anyformer-trust">{shown}</div>'


def _highlighted(lines: list[str]) -> list[str]:
    """Python as escaped HTML, each line by itself. IPython brings pygments."""
    pygments = require("pygments", purpose=_PURPOSE, extra="ui")
    lexer = require("pygments.lexers.python", purpose=_PURPOSE, extra="ui").PythonLexer(stripnl=False, ensurenl=False)
    formatter = require("pygments.formatters.html", purpose=_PURPOSE, extra="ui").HtmlFormatter(nowrap=True)
    text = "".join(f"{line}\n" for line in lines)
    marked = str(pygments.highlight(text, lexer, formatter)).removesuffix("\n").split("\n")
    return marked if len(marked) == len(lines) else [html.escape(line) for line in lines]

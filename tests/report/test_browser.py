"""The page in a real browser, from the disk: no errors, no requests, no sideways scrolling, a switch that switches."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from anyformer.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
]
OVERLAPS = """() => {
  const shown = [...document.querySelectorAll('.chart span')].filter(span => span.offsetParent);
  const boxes = shown.map(span => span.getBoundingClientRect());
  let bad = 0;
  for (const [i, a] of boxes.entries()) for (const b of boxes.slice(i + 1))
    if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3) bad++;
  return bad + boxes.filter(b => b.left < 0 || b.right > innerWidth).length;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium")
    with sync_api.sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield instance
        instance.close()


def open_page(browser: Any, report: Path, **options: Any) -> tuple[Any, list[str], list[str]]:
    tab = browser.new_page(**options)
    errors: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: errors.append(message.text))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("dialog", lambda dialog: errors.append(dialog.message))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(report.as_uri())
    return tab, errors, requests


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page(browser: Any, make_run: Callable[..., Path], width: int, scheme: str) -> None:
    report = write_report(make_run())
    size = {"width": width, "height": 800}
    tab, errors, requests = open_page(browser, report, viewport=size, color_scheme=scheme)
    assert errors == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate(OVERLAPS) == 0
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(252, 252, 250)"
    assert light == (scheme == "light")
    tab.close()


def test_the_switch_needs_no_script(browser: Any, make_run: Callable[..., Path]) -> None:
    tab, _, _ = open_page(browser, write_report(make_run()), java_script_enabled=False)
    assert tab.locator(".panel.linear").is_visible()
    assert not tab.locator(".panel.log").is_visible()
    tab.click("label[for=log]")
    assert tab.locator(".panel.log").is_visible()
    assert not tab.locator(".panel.linear").is_visible()
    tab.keyboard.press("ArrowLeft")  # reachable by keyboard
    assert tab.locator(".panel.linear").is_visible()
    tab.emulate_media(media="print")
    assert not tab.locator("label[for=log]").is_visible()
    tab.close()


def test_long_words_and_odd_runs_do_not_widen_it(browser: Any, make_run: Callable[..., Path]) -> None:
    rows = [{"step": 10, "train_loss": 7.5, "tokens_per_second": 1_234_567.0}]
    long = "x" * 300
    run = make_run(
        rows=rows,
        state="failed",
        results=None,
        error=long,
        command=long,
        settings={long: long},
        findings=[{"name": long, "verdict": "fail", "measured": long, "expected": long, "reason": long}],
    )
    tab, errors, _ = open_page(browser, write_report(run), viewport={"width": 360, "height": 800})
    assert errors == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate(OVERLAPS) == 0
    tab.close()

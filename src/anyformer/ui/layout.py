"""Where words stand: pure functions from figures to lines of at most ``width`` columns."""

from __future__ import annotations

import re
from collections.abc import Sequence

from anyformer.core.findings import Finding
from anyformer.core.view import printable, wrapped

NAME, VALUE = 10, 20  # columns of a stage line, as wide as its longest names ("tokenizer") and usual values need
SAMPLE_LINES = 6


def stage_lines(name: str, value: str, detail: str, width: int) -> list[str]:
    """``  name       value                 detail``; the detail goes below where there is no room."""
    value = printable(value)
    parts = [part.strip() for part in re.split(r"\s{3,}", printable(detail)) if part.strip()]
    detail = "   ".join(parts)
    head = f"  {name:<{NAME}} "
    indent = " " * len(head)
    one_line = f"{head}{value:<{VALUE}} {detail}".rstrip() if detail else head + value
    if len(value) > VALUE and detail:
        one_line = f"{head}{value}   {detail}"
    if len(one_line) <= width:
        return [one_line]
    lines = wrapped(value, first=head, rest=indent, width=width)
    for part in parts:
        lines += wrapped(part, first=indent, rest=indent, width=width)
    return lines


def finding_lines(finding: Finding, width: int) -> list[str]:
    """``  ✓ name: measured — reason``."""
    reason = f" — {finding.reason}" if finding.reason else ""
    text = f"{finding.name}: {finding.measured}{reason}"
    return wrapped(text, first=f"  {finding.mark} ", rest="    ", width=width)


def sample_lines(prompt: str, text: str, width: int) -> list[str]:
    """The prompt, a bar, and what the model wrote behind it; cut to the width and to a few lines."""
    prompt, text = printable(prompt), printable(text)
    written = text.removeprefix(prompt)
    label = prompt.rstrip() if "\n" not in prompt and len(prompt) <= 16 else ""
    body = written if label else prompt + written
    room = max(10, width - len(label) - 5)
    lines = [line if len(line) <= room else line[: room - 1] + "…" for line in body.expandtabs(4).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) > SAMPLE_LINES:
        lines = [*lines[: SAMPLE_LINES - 1], "…"]
    return [f"  {label if i == 0 else '':<{len(label)}} │ {line}".rstrip() for i, line in enumerate(lines or [""])]


def table(rows: Sequence[tuple[str, str, str]], width: int) -> list[str]:
    """Three columns (name, measured, reason); the reason goes below where there is no room."""
    rows = [(printable(name), printable(value), printable(reason)) for name, value, reason in rows]
    name_width = max((len(name) for name, _, _ in rows), default=0)
    value_width = min(max((len(value) for _, value, _ in rows), default=0), max(20, width // 2 - name_width))
    lines = []
    for name, value, reason in rows:
        head = f"  {name:<{name_width}}  "
        one_line = f"{head}{value:<{value_width}}  {reason}".rstrip()
        if len(one_line) <= width and (len(value) <= value_width or not reason):
            lines.append(one_line)
            continue
        indent = " " * len(head)
        lines += wrapped(value, first=head, rest=indent, width=width)
        lines += wrapped(reason, first=indent, rest=indent, width=width) if reason else []
    return lines

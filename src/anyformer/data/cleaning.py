"""One text made clean, or left out; and the count of what that did."""

from __future__ import annotations

import hashlib
import re

from anyformer.core.findings import Finding
from anyformer.core.view import percent

_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff]")
_LINE_ENDS = re.compile(r"\r\n?")
_TRAILING = re.compile(r"[ \t]+(?=\n)")
_BLANK_LINES = re.compile(r"\n{3,}")


def clean_text(text: str) -> str:
    """Line ends as \\n, no control characters but tabs, no spaces at line ends, one blank line at most, and no white
    space around it. Nothing inside a line changes: not the letters, not their case, not the indentation."""
    text = _CONTROLS.sub("", _LINE_ENDS.sub("\n", text))
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", text)).strip()


class Cleaner:
    """Applies the settings of DatasetLoader to one text after the other; ``findings`` tells what happened."""

    def __init__(self, preprocessing: bool, min_length: int, max_length: int | None, remove_duplicates: bool) -> None:
        self._preprocessing = preprocessing
        self._min_length = min_length
        self._max_length = max_length
        self._known: set[bytes] | None = set() if remove_duplicates else None
        self.seen = self.kept = self.changed = 0
        self._short = self._cut = self._duplicate = 0

    def __call__(self, text: str) -> str | None:
        """The text as it is kept; None where it is left out."""
        self.seen += 1
        result = clean_text(text) if self._preprocessing else text
        if len(result) < self._min_length or (self._preprocessing and not result):
            self._short += 1
            return None
        if self._max_length is not None and len(result) > self._max_length:
            self._cut += 1
            result = result[: self._max_length]
        if self._known is not None:
            digest = hashlib.sha256(result.encode("utf-8", "surrogatepass")).digest()[:16]
            if digest in self._known:
                self._duplicate += 1
                return None
            self._known.add(digest)
        self.kept += 1
        self.changed += result != text
        return result

    def findings(self) -> list[Finding]:
        """What was kept, and what was left out or cut and why."""
        found = [Finding("texts kept", "note", f"{self.kept:,} of {self.seen:,}")]
        told = (
            (self._short, "left out", f"empty or under {self._min_length} characters (min_length)"),
            (self._duplicate, "left out", "said before by another (remove_duplicates)"),
            (self._cut, "cut", f"to {self._max_length or 0:,} characters (max_length)"),
        )
        for count, what, why in told:
            if count:
                share = percent(count / self.seen)
                found.append(Finding(f"texts {what}", "note", f"{count:,} ({share})", reason=why))
        return found

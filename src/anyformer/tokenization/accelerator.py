"""Which text the optional accelerator is given: all but that of which its ids were seen to differ from the library's.

Measured with tokie 0.1.4 on 570,000 random strings (benchmarks/results/token_cache.md). What it errs in is encoded by
the library, so that a cache holds the same ids with it and without.
"""

from __future__ import annotations

import functools
import json
import re

LONGEST = 8_000
"""Characters. It cuts texts itself: from 10,000 on in the middle of a run without an end, from 64 KiB on anywhere."""
_AFTER_WORD = re.compile(r"(?<=\S) (?=\w)")
BEFORE_SPACE = re.compile(r"(?<=[!-~\w])(?=[ \n])")
"""No match of GPT-2's pattern goes on from a visible sign to white space, and none looks back."""
_ERRS = ("\x0b", "\x0c", "\t'")
"""Two line ends before a vertical tab or form feed; a contraction ('s, 't …) after a tab."""
_ERRS_BEYOND_ASCII = re.compile(r"[^\x00-\x7f\w]'")
"""A contraction after a sign that is a letter to it alone (Ⓐ)."""
_PATTERN = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


@functools.lru_cache(maxsize=4)  # asked for every text, and 40 ms for 8,192 entries
def is_known(tokenizer_json: str) -> bool:
    """Whether a tokenizer is of the kind that was measured: byte-level BPE with GPT-2's pattern, nothing before it."""
    state = json.loads(tokenizer_json)
    before = state.get("pre_tokenizer") or {}
    same = all(before.get(name, value) == value for name, value in _PATTERN.items()) and "type" in before
    plain = all(
        not (token["lstrip"] or token["rstrip"] or token["single_word"] or re.search(r"\s", token["content"]))
        for token in state.get("added_tokens") or ()
    )
    return same and plain and state["model"]["type"] == "BPE" and state.get("normalizer") is None


def errs(text: str) -> bool:
    """Whether it may give other ids than the library for the text."""
    if any(sign in text for sign in _ERRS):
        return True
    return not text.isascii() and "'" in text and _ERRS_BEYOND_ASCII.search(text) is not None


def cut(text: str) -> list[str] | None:
    """The text in parts that are short enough, whose ids in a row are those of the whole; None where it has no such.

    GPT-2's pattern never reaches over a single space between a word and what stands before it.
    """
    parts, start = [], 0
    while len(text) - start > LONGEST:
        last = start + LONGEST
        place = _AFTER_WORD.search(text, max(start + 1, last - 1000), last) or _AFTER_WORD.search(text, start + 1, last)
        if place is None:
            return None
        parts.append(text[start : place.start()])
        start = place.start()
    return [*parts, text[start:]]


def is_panic(error: BaseException) -> bool:
    """Whether its native code has failed; not an Exception."""
    return type(error).__name__ == "PanicException"

"""What a user states about the call in ``anyformer.yaml`` beside the model, under the key ``call``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import yaml

from anyformer.core.errors import CallError
from anyformer.models.plan import Family, LogitsPath

FILE = "anyformer.yaml"
DECLARED = ("stateful", "cross-batch")
_EXPECTED = f"expected some of {', '.join(DECLARED)}; what may look ahead is stated by family: encoder"
_ROLES = ("positions", "segments", "lengths", "padding_id", "causal_mask", "mask")


@dataclass(frozen=True)
class Stated:
    """Parts of the call that are not searched for, because the user stated them. They are proven like any other."""

    tokens: str | None = None
    """Parameter that takes the ids."""
    target: str | None = None
    """Parameter that takes the decoder's input, of an encoder-decoder."""
    targets: str | None = None
    """Parameter that takes the targets; "none"."""
    mask: str | None = None
    """Parameter that takes the padding mask; "none"."""
    logits: str | None = None
    """Where they are: output, output[1], output.logits, self.NAME, loss, loss[1] (of several cross-entropies)."""
    head: str | None = None
    """Submodule or method that makes logits of hidden states."""
    batch: str | None = None
    """first or second: which axis of the ids counts the rows."""
    family: str | None = None
    """decoder, encoder, encoder_decoder, classifier."""
    shift: str | None = None
    """caller (logits[t] are for token t + 1) or inside (the model shifts right: logits[t] are for token t)."""
    declares: str | None = None
    """What is meant so, with commas between: stateful (a text may change what comes after it), cross-batch (rows see
    one another). It is then judged by its own rule, and does not block."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further parameters: a constant, or one of positions, segments, lengths, padding_id, causal_mask, mask."""

    def place(self) -> tuple[str, LogitsPath] | None:
        """(logits_from, path) of what is stated on the logits."""
        if self.logits is None:
            return None
        text = self.logits.strip()
        if text == "loss":
            return "loss", ()
        if number := re.fullmatch(r"loss\[(\d+)\]", text):
            return "loss", (int(number[1]),)
        if text.startswith("self."):
            return f"attribute:{text.removeprefix('self.')}", ()
        path: list[str | int] = []
        for step in text.removeprefix("output").replace("[", ".").replace("]", "").split("."):
            step = step.strip("'\" ")
            if step:
                path.append(int(step) if step.lstrip("-").isdigit() else step)
        return "output", tuple(path)

    @property
    def declared(self) -> frozenset[str]:
        """The words of ``declares``."""
        return frozenset(word.strip() for word in (self.declares or "").split(",") if word.strip())

    def lines(self) -> list[str]:
        """What is stated, one a line, for messages."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return [f"{name}: {value}" for name, value in values.items() if value not in (None, {})]


def stated(overrides: Mapping[str, Any] | None) -> Stated:
    """Check what ``call:`` holds. Raises CallError for an unknown key or value, naming it."""
    if not overrides:
        return Stated()
    known = {f.name for f in fields(Stated)}
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise CallError(f"{FILE}: call has no {', '.join(map(str, unknown))}", f"its keys: {', '.join(sorted(known))}")
    values = {key: overrides[key] for key in overrides if key in known and key != "arguments"}
    for key, value in values.items():
        if value is None:
            values[key] = "none"  # yaml reads a bare `none` as a string, but `null` and `~` as None
        elif not isinstance(value, str):
            raise CallError(f"{FILE}: call.{key} is {value!r}", "expected a name or word")
    arguments = overrides.get("arguments") or {}
    if not isinstance(arguments, Mapping):
        raise CallError(f"{FILE}: call.arguments is {arguments!r}", "expected names with a value each: start_pos: 0")
    for key, allowed in (
        ("batch", ("first", "second")),
        ("family", get_args(Family)),
        ("shift", ("caller", "inside")),
    ):
        if key in values and values[key] not in allowed:
            raise CallError(f"{FILE}: call.{key} is {values[key]!r}", f"expected one of {', '.join(allowed)}")
    said = Stated(**values, arguments=dict(arguments))
    if others := said.declared - set(DECLARED):
        raise CallError(f"{FILE}: call.declares is {said.declares!r}", f"{', '.join(sorted(others))}: {_EXPECTED}")
    return said


def role_stated(value: Any) -> str | None:
    """The role that an argument's value names, None for a constant."""
    return value if isinstance(value, str) and value in _ROLES else None


def read_overrides(folder: str | Path) -> dict[str, Any] | None:
    """``call:`` of the folder's anyformer.yaml; None where there is none.

    Raises CallError for a file that is not YAML, holds other keys than ``call``, or states something unknown.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CallError(f"{path} is not YAML", str(error)) from error
    if content is None:
        return None
    if not isinstance(content, dict):
        raise CallError(f"{path} holds a {type(content).__name__}", "expected:\ncall:\n  tokens: idx")
    others = [str(key) for key in content if key != "call"]
    if others:
        raise CallError(f"{path} has unknown keys: {', '.join(others)}", "only call is read")
    call = content.get("call") or {}
    if not isinstance(call, dict):
        raise CallError(f"{path}: call is {call!r}", "expected names with a value each:\ncall:\n  tokens: idx")
    stated(call)
    return call or None

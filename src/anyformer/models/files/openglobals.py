"""Globals that a model reads and that loading its file does not set."""

from __future__ import annotations

import ast
import builtins
import types
from collections.abc import Iterable, Mapping
from typing import Any

from anyformer.core.findings import Finding
from anyformer.models.building import aliases
from anyformer.models.building.sizes import is_open, is_trial
from anyformer.models.building.written import Written
from anyformer.models.files.syntax import mentions, reached

_OBJECTS = frozenset(("vocab", "layers", "blocks", "heads", "embed", "context", "length", "pad", "eos", "bos", "depth"))
"""Globals of these names are as often objects as sizes."""
_SIZES = frozenset(
    (
        *("vocab_size", "src_vocab_size", "tgt_vocab_size", "d_model", "n_heads", "n_layers", "d_ff", "max_len"),
        *("dropout", "device", "pad_id", "src_pad_id", "tgt_pad_id", "num_classes", "head_dim"),
    )
)

_NEVER_NONE = ("d_model", "n_heads", "n_layers")


def filled(
    text: str,
    module: types.ModuleType,
    cls: Any,
    given: dict[str, Any],
    fallback: dict[str, Any],
    beside: Iterable[types.ModuleType],
) -> tuple[dict[str, Any], list[Finding]]:
    """Set the open globals that a class reads: the values that they got, and what is to be said of them.

    beside: modules from which the file may read a vocabulary left open (None, -1, 0) once more.
    """
    space = vars(module)
    tree = ast.parse(text)
    names = reached(mentions(tree), getattr(cls, "__name__", ""))
    later = {n for n in names & space.keys() if aliases.role(n) in aliases.VOCABULARIES and is_open(space[n])}
    set_later = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    none = {n for n in names & set_later & space.keys() if space[n] is None and aliases.role(n) in _SIZES}
    if any(aliases.role(n) in _NEVER_NONE for n in none):  # they are set before a model is built: global n_embd
        later |= none
    open_names = sorted(later | {n for n in names if n not in space and not hasattr(builtins, n)})
    said_otherwise = _said_otherwise(names, space, given)
    if not open_names:
        return said_otherwise
    written = Written(text, module).names()
    found: dict[str, Any] = {}
    for name in open_names:
        trial = name in later or (aliases.role(name) in aliases.VOCABULARIES and is_trial(written.get(name)))
        value = written.get(name) if name not in given and not trial else None
        value = size_of(name, {**space, **written, **found}, given, fallback) if value is None else value
        if value is not None:
            found[name] = value
    space.update(found)
    for other in {id(m): m for m in beside}.values():
        values = vars(other)
        values.update({n: found[n] for n in later & found.keys() & values.keys() if is_open(values[n])})
    if not found:
        return said_otherwise
    said = ", ".join(f"{k}={v!r}" for k, v in found.items())
    own = all(written.get(k) == v for k, v in found.items())
    why = "the model reads these globals, and loading the file does not set them"
    more = "; the values are those under __main__" if own else "; put your own into config.json"
    told = Finding("sizes", "note" if own else "warn", said, reason=why + more)
    return found | said_otherwise[0], [*said_otherwise[1], told]


def _said_otherwise(
    names: set[str], space: dict[str, Any], given: dict[str, Any]
) -> tuple[dict[str, Any], list[Finding]]:
    """Set the vocabulary's size, where the file has a number and the configuration another by the very same name."""
    sizes = {n for n in names & space.keys() & given.keys() if aliases.role(n) in aliases.VOCABULARIES}
    found = {n: given[n] for n in sizes if type(space[n]) is int and type(given[n]) is int and given[n] != space[n]}
    notes = [
        Finding("sizes", "note", f"{name}={value!r}", reason=f"as the configuration says; {space[name]!r} in the file")
        for name, value in found.items()
    ]
    space.update(found)
    return found, notes


def size_of(name: str, space: Mapping[str, Any], given: dict[str, Any], fallback: dict[str, Any]) -> Any:
    """The value of a global: given by its very name, or a size by its name, the caller's or a small one of ours."""
    if name in given:
        return given[name]
    meaning = aliases.role(name)
    if meaning not in _SIZES or name in _OBJECTS:
        return None
    for source in (given, fallback):
        roles = aliases.roles(source)
        for wanted in (meaning, aliases.PARENTS.get(meaning)):
            found = [source[k] for k in (name, *(k for k, r in roles.items() if r == wanted)) if k in source]
            if found:
                return found[0]
    known = {r: space[n] for n, r in aliases.roles(n for n in space if not n.startswith("_")).items()}
    return aliases.default(meaning, known)

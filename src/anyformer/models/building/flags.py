"""Defaults of a program's command line, from its text: of the model's own file, and of the program beside it."""

from __future__ import annotations

import ast
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PROGRAMS = re.compile(r"(options?|opts?|args|arguments|argparser|parser|config|hparams|params|main|train|run)(_\w+)?")
"""Files in which people read the command line."""
_MAX_BYTES = 200_000


def flags_beside(module: types.ModuleType) -> dict[str, dict[str, Any]]:
    """File → the defaults of its flags, for the programs beside a model's file or beside its package."""
    file = Path(getattr(module, "__file__", None) or "")
    found: dict[str, dict[str, Any]] = {}
    for folder in _folders(file.parent) if file.name else ():
        for path in sorted(folder.glob("*.py")):
            if path == file or not _PROGRAMS.fullmatch(path.stem.lower()) or path.stat().st_size > _MAX_BYTES:
                continue
            try:
                flags = flag_defaults(ast.parse(path.read_text(encoding="utf-8-sig")))
            except (OSError, ValueError, SyntaxError, RecursionError):  # it is nobody's error: the model does without
                continue
            if flags:
                found.setdefault(path.name, flags)
    return found


def _folders(folder: Path) -> Iterator[Path]:
    yield folder
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder = folder.parent
        yield folder


def flag_defaults(tree: ast.Module) -> dict[str, Any]:
    """Defaults of ``parser.add_argument("--d_model", type=int, default=512)``, by name."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"):
            continue
        names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        keywords = {k.arg: k.value for k in node.keywords if k.arg}
        long = next((n for n in names if n.startswith("--")), names[0] if names else None)
        if "dest" in keywords and isinstance(keywords["dest"], ast.Constant):
            long = str(keywords["dest"].value)
        if long is None:
            continue
        name = long.lstrip("-").replace("-", "_")
        action = keywords.get("action")
        if isinstance(action, ast.Constant) and action.value in ("store_true", "store_false"):
            found[name] = action.value == "store_false"
        if "default" in keywords:
            try:
                found[name] = ast.literal_eval(keywords["default"])
            except ValueError:
                continue
    return found

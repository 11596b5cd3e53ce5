"""The drawn error tree is the real one, and a message reads: what, detail, fix."""

from __future__ import annotations

import builtins
import inspect
import re

import pytest

from anyformer.core import errors
from anyformer.core.errors import AnyformerError

CLASSES = {
    name: value for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)
}


def drawn() -> dict[str, tuple[str, str | None]]:
    """name → (parent in the tree, built-in in parentheses), read from the module's docstring."""
    tree: dict[str, tuple[str, str | None]] = {}
    for line in (errors.__doc__ or "").splitlines():
        for cell in re.findall(r"[├└]── ([^├└]+)", line):
            parent = "AnyformerError"
            for part in cell.split("──"):
                found = re.match(r"\s*(\w+)(?:\((\w+)\))?", part)
                assert found
                tree[found[1]] = (parent, found[2])
                parent = found[1]
    return tree


def test_every_class_is_drawn_and_every_drawing_is_a_class() -> None:
    assert set(drawn()) | {"AnyformerError"} == set(CLASSES)


@pytest.mark.parametrize(("name", "parent", "builtin"), [(n, p, b) for n, (p, b) in drawn().items()])
def test_the_drawn_bases_are_the_actual_ones(name: str, parent: str, builtin: str | None) -> None:
    bases = [CLASSES[parent]] + ([getattr(builtins, builtin)] if builtin else [])
    assert list(CLASSES[name].__bases__) == bases


def test_a_message_is_what_then_detail_then_fix() -> None:
    error = errors.SourceError("no model.py", detail="it holds:\na.py", fix="anyformer train a.py")
    assert str(error) == "no model.py\n  it holds:\n  a.py\n  → anyformer train a.py"
    assert str(AnyformerError("only this")) == "only this"
    # FileNotFoundError and ImportError have a __str__ of their own; ours must win for each class
    assert {str(kind("what", "detail", "fix")) for kind in CLASSES.values()} == {"what\n  detail\n  → fix"}


def test_wrong_usage_exits_2_and_failure_1() -> None:
    codes = {name: kind.exit_code for name, kind in CLASSES.items()}
    usage = {
        "SettingsError",
        "SourceError",
        "TrustError",
        "ConstructError",
        "DataError",
        "DataNotFound",
        "TokenizerError",
    }
    assert {name for name, code in codes.items() if code == 2} == usage
    assert codes.pop("Interrupted") == 130
    assert {code for name, code in codes.items() if name not in usage} == {1}

"""Modules that torch itself cannot keep."""

from __future__ import annotations

import pytest
from torch import nn

from anyformer.core.errors import ConstructError
from anyformer.models.files.limits import require_hashable
from anyformer.models.source import load_model


class Equal(nn.Linear):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)

    __hash__ = None  # type: ignore[assignment]  # as Python leaves it


def test_a_class_with_eq_alone_is_named() -> None:
    with pytest.raises(ConstructError, match="Equal has no hash") as caught:
        require_hashable(nn.Sequential(nn.Linear(2, 2), nn.Sequential(Equal(2, 2))))
    assert "__hash__ = nn.Module.__hash__" in caught.value.fix
    require_hashable(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("size", [4, 6000])
def test_a_file_with_such_a_model_is_refused_by_its_name(tmp_path, size):
    """size: 6000 makes the matrix that is estimated first."""
    (tmp_path / "model.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        f"    def __init__(self):\n        super().__init__()\n        self.o = nn.Linear({size}, {size})\n"
        "    def __eq__(self, other): return self is other\n"
    )
    with pytest.raises(ConstructError, match="Net has no hash"):
        load_model(tmp_path / "model.py")

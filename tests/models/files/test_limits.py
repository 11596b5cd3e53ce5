"""Modules that torch itself cannot keep, and models that take more memory than there is."""

from __future__ import annotations

import copy
import gc
import importlib
import sys
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from anyformer.core.errors import ConstructError
from anyformer.models.files import limits
from anyformer.models.files.limits import DoesNotFit, OutOfTime, build_within, refuse_huge, require_hashable, time_limit
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


WIDTH = 64
LAYER = WIDTH * WIDTH
"""Parameters of one layer of the models below, each of four bytes."""


class Deep(nn.Module):
    """Layers, and something at the start or the end that no tensor without memory can do."""

    built = 0

    def __init__(self, layers: int, first: str = "", last: str = "") -> None:
        super().__init__()
        if first == "item":
            self.rates = [x.item() for x in torch.linspace(0, 0.1, layers)]
        self.layers = nn.ModuleList()
        for _ in range(layers):
            self.layers.append(nn.Linear(WIDTH, WIDTH, bias=False))
            Deep.built += 1
        if last == "to":
            self.to("cpu")
        elif last == "item":
            self.scale = self.layers[0].weight.sum().item()


@pytest.fixture
def free(monkeypatch):
    """A machine with room for ten layers; the estimate stops at once."""
    Deep.built = 0
    monkeypatch.setattr(limits, "available_memory", lambda: int(10.5 * LAYER * 4))
    monkeypatch.setattr(limits, "_COUNT_ON_SECONDS", 0.0)


def real(build) -> list[int]:
    """Sizes of the parameters with memory that ``build`` registers."""
    seen = []

    def look(module, name, parameter):
        if parameter is not None and not parameter.is_meta:
            seen.append(parameter.numel())

    handle = nn.modules.module.register_module_parameter_registration_hook(look)
    try:
        build()
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize("last", ["to", "item"])
def test_a_constructor_that_fails_late_without_memory_is_counted_all_the_same(free, monkeypatch, last):
    """It could not be built so as a whole: its weights are known when it stops."""

    def refused() -> None:
        with pytest.raises(DoesNotFit, match=f"{12 * LAYER:,} parameters") as caught:
            refuse_huge("Deep", lambda: Deep(12, last=last), 1.0)
        assert caught.value.parameters == 12 * LAYER

    monkeypatch.setattr(limits, "_COUNT_ON_SECONDS", 5.0)
    assert real(refused) == []


def test_the_count_stops_where_it_passes_the_limit(free):
    with pytest.raises(DoesNotFit, match=f"at least .*{11 * LAYER:,} parameters"):
        refuse_huge("Deep", lambda: Deep(500), 1.0)
    assert Deep.built == 10


def test_a_constructor_that_reads_a_value_first_is_counted_without_its_weights(free):
    """Nothing is registered when the meta device fails: the parameters alone are left without memory then."""
    with pytest.raises(DoesNotFit, match=f"at least .*{11 * LAYER:,} parameters"):
        refuse_huge("Deep", lambda: Deep(500, first="item"), 1.0)
    assert Deep.built == 10
    assert refuse_huge("Deep", lambda: Deep(10, first="item"), 1.0) is None


@pytest.mark.parametrize("make", ["numpy", "device", "buffer", "copies"])
def test_tensors_with_memory_count_in_the_estimate(free, make):
    class Made(nn.Module):
        made = 0

        def __init__(self) -> None:
            super().__init__()
            layer = nn.Linear(WIDTH, WIDTH, bias=False)
            for k in range(40):
                if make == "numpy":
                    array = np.zeros((WIDTH, WIDTH), dtype=np.float32)
                    self.register_parameter(f"p{k}", nn.Parameter(torch.from_numpy(array)))
                elif make == "device":
                    self.register_parameter(f"p{k}", nn.Parameter(torch.zeros(WIDTH, WIDTH, device="cpu")))
                elif make == "buffer":
                    self.register_buffer(f"p{k}", torch.zeros(WIDTH, WIDTH, device="cpu"))
                else:
                    self.add_module(f"p{k}", nn.Sequential(copy.deepcopy(layer)))
                Made.made += 1

    with pytest.raises(DoesNotFit, match="at least"):
        refuse_huge("Made", Made, 1.0)
    assert Made.made <= 12


@pytest.mark.parametrize(("first", "last"), [("item", "to"), ("", "item"), ("item", "item")])
def test_a_model_that_fits_is_built_though_the_estimate_fails(free, first, last):
    module = build_within("Deep", lambda: Deep(3, first, last), lambda: None, [10**5, 10**5], asked=True)
    assert not any(p.is_meta for p in module.parameters())
    assert len(list(module.parameters())) == 3


@pytest.mark.parametrize(("asked", "layers"), [(True, 8), (False, 2)])
def test_the_real_build_stops_at_the_same_bound(free, monkeypatch, asked, layers):
    """room: 1.2 for sizes that were asked for, 4 for a class's defaults."""
    monkeypatch.setattr(limits, "refuse_huge", lambda name, build, room: None)

    def build(count: int) -> nn.Module:
        return build_within("Deep", lambda: Deep(count), lambda: None, [10**5, 10**5], asked=asked)

    assert len(build(layers).layers) == layers
    Deep.built = 0
    with pytest.raises(DoesNotFit, match="at least") as caught:
        build(500)
    assert Deep.built == layers
    assert caught.value.parameters == (layers + 1) * LAYER


def test_a_refused_build_leaves_no_weights_in_memory(free, monkeypatch):
    monkeypatch.setattr(limits, "refuse_huge", lambda name, build, room: None)
    parts = []

    def build() -> nn.Module:
        parts.append(weakref.ref(part := nn.Linear(WIDTH, WIDTH)))
        return nn.Sequential(part, Deep(40))

    with pytest.raises(DoesNotFit) as caught:
        build_within("Deep", build, lambda: None, [10**5, 10**5], asked=True)
    gc.collect()
    assert caught.value.parameters
    assert [part() for part in parts] == [None]


@pytest.mark.parametrize("every_tensor", [True, False])
def test_shared_replaced_and_expanded_tensors_count_once(free, every_tensor):
    """Eight layers' worth: 3 × 8 were made."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(8))
            self.two = nn.ModuleList()
            for layer in self.one:
                self.two.append(nn.Linear(WIDTH, WIDTH, bias=False))
                self.two[-1].weight = layer.weight
            self.register_buffer("mask", torch.zeros(WIDTH).expand(40, WIDTH, WIDTH), persistent=False)
            raise ValueError("at the end")

    weights = limits._Weights(10 * LAYER * 4, estimate=True, empty=not every_tensor)
    with (
        pytest.raises(ValueError, match="at the end"),
        torch.device("meta" if every_tensor else "cpu"),
        weights,
    ):
        Shared()


def test_a_file_whose_defaults_are_too_large_is_built_smaller_at_once(tmp_path, monkeypatch):
    """36 million parameters, 144 MB: its constructor ends in ``self.to(…)``."""
    monkeypatch.setattr(limits, "available_memory", lambda: 200 * 2**20)
    (tmp_path / "model.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, vocab_size=9000, d_model=4000):\n"
        "        super().__init__()\n"
        "        self.embed = nn.Embedding(vocab_size, d_model)\n"
        "        self.head = nn.Linear(d_model, 2)\n"
        "        self.to('cpu')\n"
        "    def forward(self, ids):\n"
        "        return self.head(self.embed(ids))\n"
    )
    loaded = []
    sizes = real(lambda: loaded.append(load_model(tmp_path / "model.py")))
    assert max(sizes) < 1_000_000
    assert any("more than fits here" in f.measured for f in loaded[0].findings)


def test_a_package_whose_import_was_stopped_can_be_imported_again(tmp_path, monkeypatch):
    package = tmp_path / "slow_of_another_kind"
    package.mkdir()
    (package / "core.py").write_text("here = 1\n")
    (package / "__init__.py").write_text(
        "import sys\nfrom . import core\nwhile not hasattr(sys, '_slow_once'):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OutOfTime), time_limit(0.2):
        importlib.import_module("slow_of_another_kind")
    assert not [name for name in sys.modules if name.startswith("slow_of_another_kind")]
    monkeypatch.setattr(sys, "_slow_once", True, raising=False)
    again = importlib.import_module("slow_of_another_kind")
    assert again.core.here == 1  # Python sets the name of a part on its package as it imports the part
    for name in ("slow_of_another_kind", "slow_of_another_kind.core"):
        monkeypatch.delitem(sys.modules, name)


def test_files_that_a_container_caches_count_as_free(tmp_path, monkeypatch):
    told = {
        "memory.max": "1000000",
        "memory.current": "900000",
        "memory.stat": "anon 1\nfile 2\ninactive_file 700000\n",
    }
    cgroup = tmp_path / "sys" / "fs" / "cgroup"
    cgroup.mkdir(parents=True)
    for name, text in told.items():
        (cgroup / name).write_text(text)
    monkeypatch.setattr(limits, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert limits.available_memory() == 800000

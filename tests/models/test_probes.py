"""A module and the random state come back as they were, after an exception too."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch
from torch import nn

from anyformer.models.probes import preserved_rng, set_mode, untouched


class Meddler(nn.Module):
    """Changes everything a forward can change."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(3))
        self.cache: list[int] = []
        self.by_name = {"a": 1}
        self.plain = torch.zeros(2)
        self.last = None

    def forward(self, x):
        self.count += 1
        self.plain += 1
        self.cache.append(1)
        self.by_name["b"] = 2
        self.last = x
        self.new = x
        self.register_buffer("late", torch.ones(1))
        random.random()
        np.random.rand()
        return self.norm(self.dropout(self.linear(x)))


def state(module: Meddler) -> tuple:
    return (
        {name: tensor.clone() for name, tensor in module.state_dict().items()},
        [m.training for m in module.modules()],
        [(p.requires_grad, p.grad is None) for p in module.parameters()],
        (list(module.cache), dict(module.by_name), module.plain.tolist(), module.last, hasattr(module, "new")),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )


def assert_same(before: tuple, after: tuple) -> None:
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(fails):
    module = Meddler()
    module.norm.eval()
    module.linear.bias.requires_grad_(False)
    before = state(module)

    def meddle():
        with untouched(module):
            module.eval()
            module.train()
            module.requires_grad_(True)
            module(torch.randn(5, 4)).sum().backward()
            assert module.linear.weight.grad is not None
            if fails:
                raise KeyError("stop")

    if fails:
        with pytest.raises(KeyError):
            meddle()
    else:
        meddle()
    assert_same(before, state(module))
    assert [m.training for m in module.modules()] == [True, True, False, True]


def test_gradients_that_were_there_keep_their_values_and_identity():
    module = nn.Linear(2, 2)
    module(torch.ones(1, 2)).sum().backward()
    grad, values = module.weight.grad, module.weight.grad.clone()
    with untouched(module):
        module(torch.ones(1, 2)).sum().backward()
        assert not torch.equal(module.weight.grad, values)
    assert module.weight.grad is grad
    assert torch.equal(grad, values)


def test_buffers_stay_the_same_objects():
    module = Meddler()
    count = module.count
    with untouched(module):
        module.count = torch.full((3,), 9.0)
    assert module.count is count
    with untouched(module):
        module.count.data = torch.full((4,), 9.0)
    assert module.count is count
    assert count.tolist() == [0, 0, 0]


def test_a_cache_that_is_written_under_autograd_keeps_no_graph():
    module = nn.Linear(2, 2)
    module.cache = torch.zeros(3, 2)
    cache = module.cache
    with untouched(module):
        module.cache[:1] = module(torch.ones(1, 2))
        assert module.cache.requires_grad
    assert module.cache is cache
    assert (cache.requires_grad, cache.grad_fn, cache.tolist()) == (False, None, [[0, 0]] * 3)


def test_a_lazy_module_keeps_the_shape_that_it_took():
    module = nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3))
    with untouched(module):
        module(torch.ones(2, 5))
    assert module[0].in_features == 5
    assert module(torch.ones(2, 5)).shape == (2, 3)


def test_random_state_is_preserved_after_an_exception():
    before = (random.getstate(), torch.get_rng_state().tolist())

    def draw_and_fail():
        with preserved_rng():
            random.random()
            torch.rand(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        draw_and_fail()
    assert before == (random.getstate(), torch.get_rng_state().tolist())


class Unruly(nn.Module):
    """Changes settings of the whole program, and draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generators = None
        self.own = np.random.default_rng(0)
        self.drawn = torch.Generator().manual_seed(1)
        self.old = random.Random(1)

    def forward(self, folder):
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_default_device("meta")
        os.chdir(folder)
        return self.own.random(), torch.rand(1, generator=self.drawn, device="cpu").item(), self.old.random()


def test_settings_of_the_program_and_own_generators_are_put_back(tmp_path):
    module, folder = Unruly(), os.getcwd()
    drawn = []
    for _ in range(2):
        with untouched(module):
            drawn.append(module(tmp_path))
    assert drawn[0] == drawn[1]
    assert (torch.get_default_dtype(), torch.is_grad_enabled(), os.getcwd()) == (torch.float32, True, folder)
    assert torch.zeros(1).device.type == "cpu"


def test_the_mode_is_set_where_train_does_nothing():
    class Deaf(nn.Sequential):
        def train(self, mode=True):
            return self

    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[0].eval()
            return self

    deaf, frozen = Deaf(nn.Dropout()), Frozen(nn.Dropout())
    set_mode(deaf, False)
    assert not deaf.training
    assert not deaf[0].training
    set_mode(frozen, True)  # what the user freezes stays frozen
    assert frozen.training
    assert not frozen[0].training

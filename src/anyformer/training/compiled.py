"""``torch.compile`` on the repeated blocks of a model: one compilation for all that are alike, kept where it pays."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _pop_mode_temporarily

from anyformer.models.probes import set_mode, untouched
from anyformer.training.equal import different, passed

MIN_SPEEDUP = 1.05
"""A pass must win by this much to be kept by ``auto``: less is within the noise of a shared machine."""
ROUNDS = 5
"""Passes of each kind that are timed, in turn; the shortest counts."""

Forward = Callable[..., Any]
Loss = Callable[[], Tensor]


class Compiled:
    """Compiled forward functions, one for each class of blocks. backend: as ``torch.compile`` takes it."""

    def __init__(self, backend: Any = "inductor") -> None:
        self._backend = backend
        self._functions: dict[Any, Forward] = {}

    def of(self, block: nn.Module, forward: Forward) -> Forward:
        """The forward of a block, compiled at its first call."""
        own: Any = getattr(forward, "__func__", None)
        key = own if own is not None else forward
        if key not in self._functions:
            # one size of batch at a time: what a size is computed with must not depend on which came before, or a run
            # that goes on would end with other last digits
            self._functions[key] = torch.compile(key, dynamic=False, backend=self._backend)
        compiled = self._functions[key]

        def run(*args: Any, **kwargs: Any) -> Any:
            given = args if own is None else (block, *args)
            if torch._C._len_torch_function_stack() == 0:
                return compiled(*given, **kwargs)
            with _pop_mode_temporarily():  # the fused head listens: compiled for a listener, each pass would be new
                return compiled(*given, **kwargs)

        return run


def proof(module: nn.Module, plain: Loss, fast: Loss, dtype: torch.dtype) -> tuple[str, str]:
    """(what differs, empty where nothing does; how it was compared). Compiled code draws other random numbers."""
    expected = passed(module, plain)
    problem = different(expected, passed(module, fast), dtype)
    again = passed(module, plain, seed=1)
    if not problem or expected is None or again is None or expected.loss == again.loss:
        return problem, "equal loss and gradients"
    with untouched(module):
        set_mode(module, False)
        return different(passed(module, plain), passed(module, fast), dtype), "without dropout equal loss and gradients"


def seconds(module: nn.Module, ways: Sequence[Loss]) -> list[float]:
    """The shortest time of a pass forward and backward, of each way; the module is left as it was."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    best = [math.inf] * len(ways)
    with untouched(module), torch.enable_grad():
        for _ in range(ROUNDS):
            for number, way in enumerate(ways):
                _wait()
                begin = time.perf_counter()
                torch.autograd.grad(way(), parameters, allow_unused=True)
                _wait()
                best[number] = min(best[number], time.perf_counter() - begin)
    return best


def _wait() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()

"""Repeated blocks of a model, run in another way while it trains: computed again in the backward pass to save memory.

The module stays as it is: the ``forward`` of its blocks is replaced for the length of a training pass alone, so that
names of weights, copies, evaluation and export know nothing of it. Used only after a proof on a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anyformer.core.findings import Finding
from anyformer.core.view import PlainView
from anyformer.models.blame import blame
from anyformer.models.probes import set_mode, untouched
from anyformer.training.equal import Passed, apart, limits, passed

Forward = Callable[..., Any]
_CHECKPOINTING = "activation checkpointing"


@dataclass(frozen=True)
class Group:
    """Blocks of one class in one container."""

    name: str
    """Their container's name and class, and how many there are."""
    blocks: tuple[nn.Module, ...]


@contextmanager
def replaced(blocks: Sequence[nn.Module], make: Callable[[nn.Module, Forward], Forward]) -> Iterator[None]:
    """The blocks with ``make(block, forward)`` in place of their forward, until the end."""
    before = [(block, vars(block).get("forward")) for block in blocks]
    try:
        for block in blocks:
            vars(block)["forward"] = make(block, block.forward)
        yield
    finally:
        for block, own in before:
            if own is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = own


def repeated_blocks(module: nn.Module, call: Callable[[], Any]) -> tuple[list[Group], str]:
    """Groups of blocks that a pass calls once each; where there are none, why.

    Candidates are two or more modules of one class, with parts of their own, in an nn.ModuleList or nn.Sequential;
    lists within a list count as one. call: one pass; the module is left as it was.
    """
    candidates = _candidates(module)
    if not candidates:
        return [], "no list of the model holds two blocks of one class"
    calls: dict[int, int] = {}

    def counted(block: nn.Module, forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            calls[id(block)] = calls.get(id(block), 0) + 1
            return forward(*args, **kwargs)

        return run

    every = list({id(block): block for group in candidates for block in group.blocks}.values())
    with untouched(module), torch.no_grad(), replaced(every, counted):
        set_mode(module, True)
        call()
    found: list[Group] = []
    inside: set[int] = set()
    for group in candidates:
        once = all(calls.get(id(block), 0) == 1 for block in group.blocks)
        if once and not any(id(block) in inside for block in group.blocks):
            found.append(group)
            inside |= {id(part) for block in group.blocks for part in block.modules()}
    return found, "" if found else f"the blocks are not called once each ({candidates[0].name})"


def _candidates(module: nn.Module) -> list[Group]:
    """Outer ones before those inside them."""
    found = []
    for name, container in module.named_modules():
        if not isinstance(container, nn.ModuleList | nn.Sequential):
            continue
        by_class: dict[type, list[nn.Module]] = {}
        for block in _flat(container):
            if next(block.children(), None) is not None and next(block.parameters(), None) is not None:
                by_class.setdefault(type(block), []).append(block)
        for kind, blocks in by_class.items():
            if len({id(block) for block in blocks}) == len(blocks) > 1:
                found.append(Group(f"{len(blocks)} × {kind.__name__} in {name or 'the model'}", tuple(blocks)))
    return found


def _flat(container: nn.Module) -> Iterator[nn.Module]:
    for block in container.children():
        if isinstance(block, nn.ModuleList):
            yield from _flat(block)
        else:
            yield block


def recomputed(block: nn.Module, forward: Forward) -> Forward:
    """Keeps what goes in, and computes the rest again in the backward pass, with the same dropout."""
    return partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=True)


class BlockPath:
    """How the repeated blocks are run in training; decided on the first batch, and kept by a run that goes on."""

    def __init__(self, *, checkpointing: bool = False) -> None:
        self.told: Callable[[Finding], None] = PlainView().finding
        """Called with what was decided and why."""
        self._checkpointing = checkpointing
        self._before: dict[str, Any] | None = None
        self._groups: list[Group] | None = None
        """What is computed again; None before the first batch."""

    @property
    def undecided(self) -> bool:
        """Whether the first batch has yet to come."""
        return self._groups is None

    def decide(self, module: nn.Module, loss: Callable[[], Tensor], dtype: torch.dtype) -> None:
        """Prove on a batch what was asked for; once. loss: of some rows, with its graph. dtype: it is computed in."""
        if self._groups is not None:
            return
        self._groups = []
        if self._checkpointing:
            self._groups, finding = self._proven(module, loss, dtype)
            self.told(finding)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A training pass as it was decided."""
        if not self._groups:
            yield
            return
        with replaced([block for group in self._groups for block in group.blocks], recomputed):
            yield

    def effective(self) -> dict[str, Any]:
        """What is in use, for the manifest."""
        return {"activation_checkpointing": bool(self._groups)}

    def state_dict(self) -> dict[str, Any]:
        """What was asked for and what was decided."""
        return {"asked": self._checkpointing, "checkpointed": bool(self._groups)}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Decide as before, where the same is asked for; None of a run that knew nothing of it."""
        self._before = state

    def _proven(self, module: nn.Module, loss: Callable[[], Tensor], dtype: torch.dtype) -> tuple[list[Group], Finding]:
        if self._before == {"asked": True, "checkpointed": False}:
            return [], Finding(_CHECKPOINTING, "warn", "off", reason="as the run began")
        try:
            groups, reason = repeated_blocks(module, loss)
            if not groups:
                return [], _off(reason)
            names = ", ".join(group.name for group in groups)
            blocks = [block for group in groups for block in group.blocks]

            def lean() -> Tensor:
                with replaced(blocks, recomputed):
                    return loss()

            found = passed(module, lean)
            try:
                expected = passed(module, loss)
            except torch.OutOfMemoryError:
                why = "not compared with the plain way, for which there is no memory"
                return groups, Finding(_CHECKPOINTING, "warn", names, "equal loss and gradients", why)
            problem = different(expected, found, dtype)
        except torch.OutOfMemoryError:
            self._groups = None  # decided with fewer rows
            raise
        except Exception as error:  # noqa: BLE001  (a stranger's blocks may raise anything when they run twice)
            return [], _off("the model does not run so: " + blame(error).replace("\n", ": "))
        if problem:
            return [], _off(problem)
        why = "equal loss and gradients; what lies between is computed again in the backward pass"
        return groups, Finding(_CHECKPOINTING, "ok", names, "equal loss and gradients", why)


def _off(reason: str) -> Finding:
    return Finding(_CHECKPOINTING, "warn", "off", "asked for", reason)


def different(expected: Passed | None, found: Passed | None, dtype: torch.dtype) -> str:
    """In what a pass differs from the plain one, by more than rounding; empty where in nothing."""
    if expected is None or found is None:
        return "it gives no loss"
    loss_limit, limit = limits(dtype)
    loss = abs(found.loss - expected.loss) / max(abs(expected.loss), 1e-9)
    if not loss <= loss_limit:  # NaN is no proof either
        return f"its loss is another ({loss:.0e})"
    farthest = max((apart(a, b) for a, b in zip(expected.gradients, found.gradients, strict=True)), default=0.0)
    if not farthest <= limit:
        return f"its gradients are others ({farthest:.0e})"
    for name, value in expected.state.items():
        after = found.state.get(name)
        if isinstance(value, Tensor):
            same = isinstance(after, Tensor) and value.shape == after.shape and _close(value, after, limit)
        else:
            same = value == after
        if not same:
            return f"{name} is written to once more"
    return ""


def _close(first: Tensor, second: Tensor, limit: float) -> bool:
    return torch.allclose(first.double(), second.double(), rtol=limit, atol=0.0, equal_nan=True)

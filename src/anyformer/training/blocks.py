"""Repeated blocks of a model, run in another way while it trains: computed again in the backward pass, or compiled.

The module stays as it is: the ``forward`` of its blocks is replaced for the length of a training pass alone, so that
names of weights, copies, evaluation and export know nothing of it. Used only after a proof on a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anyformer.core.findings import Finding
from anyformer.core.settings import CompileSetting
from anyformer.core.view import PlainView
from anyformer.models.blame import blame
from anyformer.models.probes import set_mode, untouched
from anyformer.training.compiled import MIN_SPEEDUP, Compiled, proof, seconds
from anyformer.training.equal import different, passed
from anyformer.training.microbatch import MEMORY, lacks_memory

Forward = Callable[..., Any]
Loss = Callable[[], Tensor]
_CHECKPOINTING = "activation checkpointing"
_COMPILE = "compile"
_LONGEST = 300  # characters of an error: compilers say pages


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
    """How the repeated blocks are run in training; decided on the first batch, and kept by a run that goes on.

    checkpointing: compute them again in the backward pass. compiling: never; auto, where that is measured faster;
    always, also where it is not. Each only where it is proven to give the same.
    """

    def __init__(
        self, *, checkpointing: bool = False, compiling: CompileSetting = "never", backend: Any = "inductor"
    ) -> None:
        self.told: Callable[[Finding], None] = PlainView().finding
        """Called with what was decided and why."""
        self._asked = {"checkpointing": checkpointing, "compiling": compiling}
        self._before: dict[str, Any] = {}
        self._compiled = Compiled(backend)
        self._lean: list[nn.Module] | None = None
        """What is computed again; None before the first batch."""
        self._fast: list[nn.Module] = []
        """What is compiled."""

    @property
    def undecided(self) -> bool:
        """Whether the first batch has yet to come."""
        return self._lean is None

    def decide(self, module: nn.Module, part: Loss, whole: Loss, dtype: torch.dtype) -> None:
        """Prove on a batch what was asked for, once.

        part, whole: the loss of some rows and of all, with its graph. dtype: in which it is computed.
        """
        try:
            self._lean = []
            if self._asked["checkpointing"]:
                groups, finding = self._leaner(module, part, dtype)
                self._lean = [block for group in groups for block in group.blocks]
                self.told(finding)
            if self._asked["compiling"] != "never":
                self._fast, finding = self._faster(module, whole, dtype)
                self.told(finding)
        except Exception:  # a lack of memory, whatever its class: decided anew with fewer rows
            self._lean = None
            raise

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A training pass as it was decided."""
        if not self._lean and not self._fast:
            yield
            return
        with replaced(self._fast, self._compiled.of), replaced(self._lean or [], recomputed):
            yield

    def stops_compiling(self, error: Exception) -> bool:
        """Whether a pass that failed may be made again without compiled blocks: they are off from here on."""
        if not self._fast:
            return False
        self._fast = []
        self.told(Finding(_COMPILE, "warn", "off", reason="a later batch does not run so: " + _line(error)))
        return True

    def effective(self) -> dict[str, Any]:
        """What is in use, for the manifest; nothing of what was not asked for."""
        found: dict[str, Any] = {}
        if self._asked["checkpointing"]:
            found["activation_checkpointing"] = bool(self._lean)
        if self._asked["compiling"] != "never":
            found["compile"] = bool(self._fast)
        return found

    def state_dict(self) -> dict[str, Any]:
        """What was asked for and what was decided."""
        return {**self._asked, "lean": bool(self._lean), "fast": bool(self._fast), "decided": not self.undecided}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Decide as before, where the same is asked for; None of a run that knew nothing of it."""
        self._before = state if state is not None and state["decided"] else {}

    def _faster(self, module: nn.Module, loss: Loss, dtype: torch.dtype) -> tuple[list[nn.Module], Finding]:
        same = self._before.get("compiling") == self._asked["compiling"]
        if same and not self._before["fast"]:
            return [], Finding(_COMPILE, "note", "off", reason="as the run began")

        def plain() -> Tensor:
            with replaced(self._lean or [], recomputed):
                return loss()

        try:
            groups, reason = repeated_blocks(module, loss)
            if not groups:
                return [], Finding(_COMPILE, "note", "off", reason=reason)
            blocks = [block for group in groups for block in group.blocks]

            def fast() -> Tensor:
                with replaced(blocks, self._compiled.of):
                    return plain()

            begin = time.perf_counter()
            problem, compared = proof(module, plain, fast, dtype)
            took = time.perf_counter() - begin
            if problem:
                return [], Finding(_COMPILE, "warn", "off", "equal loss and gradients", problem)
            names = ", ".join(group.name for group in groups)
            if same:
                return blocks, Finding(_COMPILE, "ok", names, reason=f"as the run began; {compared}")
            slow, quick = seconds(module, [plain, fast])
        except Exception as error:
            if lacks_memory(error):
                raise
            return [], Finding(_COMPILE, "warn", "off", reason="the blocks cannot be compiled here: " + _line(error))
        ratio = slow / quick
        why = f"a pass takes {quick * 1e3:.3g} ms instead of {slow * 1e3:.3g} ({ratio:.2f} ×); compiled in {took:.0f} s"
        if ratio < MIN_SPEEDUP and self._asked["compiling"] != "always":
            return [], Finding(_COMPILE, "note", "off", f"at least {MIN_SPEEDUP} ×", why)
        return blocks, Finding(_COMPILE, "ok", names, "equal loss and gradients", f"{compared}; {why}")

    def _leaner(self, module: nn.Module, loss: Loss, dtype: torch.dtype) -> tuple[list[Group], Finding]:
        if self._before.get("checkpointing") and not self._before["lean"]:
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
            except MEMORY as error:
                if not lacks_memory(error):
                    raise
                why = "not compared with the plain way, for which there is no memory"
                return groups, Finding(_CHECKPOINTING, "warn", names, "equal loss and gradients", why)
            problem = different(expected, found, dtype)
        except Exception as error:
            if lacks_memory(error):
                raise
            return [], _off("the model does not run so: " + _line(error))
        if problem:
            return [], _off(problem)
        why = "equal loss and gradients; what lies between is computed again in the backward pass"
        return groups, Finding(_CHECKPOINTING, "ok", names, "equal loss and gradients", why)


def _off(reason: str) -> Finding:
    return Finding(_CHECKPOINTING, "warn", "off", "asked for", reason)


def _line(error: Exception) -> str:
    return blame(error).replace("\n", ": ")[:_LONGEST]

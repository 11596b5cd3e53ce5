"""Running a module on tiny batches: what it takes, what it gives, which embedding sees the ids.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.models.plan import LogitsPath, call

_DEPTH = 4  # how deep logits may lie in nested outputs; none of the libraries' outputs goes beyond 2
_NOISE = 0.1  # stands in for what training would write into weights that start at zero


@dataclass(frozen=True)
class Binding:
    """Which parameters are given what."""

    token_arg: str
    mask_arg: str | None = None
    targets_arg: str | None = None


@dataclass
class Seen:
    """What a run showed besides its output."""

    embedding_rows: int | None = None
    position_rows: list[int] = field(default_factory=list)


class Prober:
    """Runs one module in eval mode without gradients; enter ``untouched`` around it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        tensors = [*module.parameters(), *module.buffers()]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.length = 5
        """T of small batches; shorter where the module takes no more."""

    def run(
        self, binding: Binding, ids: Tensor, *, mask: Tensor | None = None, targets: Tensor | None = None
    ) -> tuple[Any, Exception | None]:
        """Output and None, or None and what the module raised. The same random state before each run."""
        torch.manual_seed(0)
        try:
            with torch.no_grad():
                output = call(self.module, binding.token_arg, ids, binding.mask_arg, mask, binding.targets_arg, targets)
        except Exception as error:  # noqa: BLE001  (a stranger's forward may raise anything; the caller reports it)
            return None, error
        return output, None

    def watched(self, binding: Binding, ids: Tensor, mask: Tensor | None, targets: Tensor | None) -> Seen:
        """Which nn.Embedding receives exactly the ids, and which the positions 0…T-1."""
        seen = Seen()
        flat, positions = ids.flatten(), torch.arange(ids.shape[1], device=ids.device)

        def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            given = inputs[0] if inputs else None
            if not isinstance(given, Tensor) or not isinstance(module, nn.Embedding) or given.is_floating_point():
                return
            if given.numel() == flat.numel() and torch.equal(given.flatten().to(flat), flat):
                rows = module.num_embeddings
                seen.embedding_rows = rows if seen.embedding_rows is None else min(rows, seen.embedding_rows)
            elif given.shape[-1:] == positions.shape and torch.equal(given.flatten()[: len(positions)], positions):
                seen.position_rows.append(module.num_embeddings)

        handles = [m.register_forward_pre_hook(look) for m in self.module.modules() if isinstance(m, nn.Embedding)]
        try:
            self.run(binding, ids, mask=mask, targets=targets)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def ids(self, B: int, T: int, seed: int, high: int) -> Tensor:
        """Random ids (B, T) from 1 to high-1: id 0 is padding in many models, which may hide it from itself."""
        generator = torch.Generator().manual_seed(seed)
        low = 1 if high > 2 else 0
        return torch.randint(low, high, (B, T), generator=generator).to(self.device)


def tensors_in(output: Any, path: LogitsPath = ()) -> Iterator[tuple[LogitsPath, Tensor]]:
    """Floating tensors in tensors, tuples, lists, dicts, dataclasses and objects with attributes, with their paths."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield path, output
        return
    if len(path) >= _DEPTH:
        return
    for step, value in _children(output):
        yield from tensors_in(value, (*path, step))


def _children(output: Any) -> list[tuple[str | int, Any]]:
    if isinstance(output, Mapping):
        return [(k, v) for k, v in output.items() if isinstance(k, str)]
    if isinstance(output, list | tuple):
        return list(enumerate(output))
    if is_dataclass(output) or hasattr(output, "__dict__"):
        return [(k, v) for k, v in vars(output).items() if not k.startswith("_")]
    return []


def describe(output: Any) -> str:
    """Shapes in the output, for messages: "a tuple: output[0] (2, 1, 50)"."""
    found = list(tensors_in(output))
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)} of {str(output.dtype).removeprefix('torch.')}"
    shapes = ", ".join(f"{'.'.join(map(str, path))}: {tuple(tensor.shape)}" for path, tensor in found)
    return f"a {type(output).__name__} with {shapes or 'no floating tensor'}"


def woken(module: nn.Module) -> tuple[nn.Module, list[str], str]:
    """The module, or a copy in which weights that are all zero hold noise; their names; why no copy could be made.

    A head or an output projection that starts at zero hides everything behind it: no property could be measured.
    """
    asleep = [
        name
        for name, p in module.named_parameters()
        if not name.endswith("bias") and p.is_floating_point() and p.numel() and not bool(p.detach().any())
    ]
    if not asleep:
        return module, [], ""
    try:
        awake = copy.deepcopy(module)
    except Exception as error:  # noqa: BLE001  (a stranger's attributes may refuse to be copied in any way)
        return module, asleep, f"{type(error).__name__}: {error}"
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in awake.named_parameters():
            if name in asleep:
                p.copy_(torch.randn(p.shape, generator=generator) * _NOISE)
    return awake, asleep, ""

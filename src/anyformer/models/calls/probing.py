"""Running a module on tiny batches: what it gives, which embedding sees the ids.

B batch, T time (source), S time (target), V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from anyformer.models.calling import call_logits, raw_output
from anyformer.models.calls.drift import Drift
from anyformer.models.files.limits import time_limit
from anyformer.models.inputs import Inputs, repeated
from anyformer.models.losstap import LossTap
from anyformer.models.plan import CallPlan, LogitsPath

_DEPTH = 4  # how deep logits may lie in nested outputs; none of the libraries' outputs goes beyond 2
_SIZED = 1 << 20
"""Logits whose size is looked at, of more of them."""
_CACHED = 1 << 18
"""Logits that are compared at a time on a CPU: 1 MB, what a core's cache holds."""
_NOISE = 0.1  # stands in for what training would write into weights that start at zero


@dataclass
class Run:
    """What one call of the module gave."""

    output: Any
    attributes: dict[str, Any]
    """What the call set on the module."""
    tapped: list[tuple[Tensor, Tensor]]
    """What each of its own cross-entropies was computed from, and its targets."""


FORWARD_SECONDS = 120.0
"""A forward of five ids, of a model of billions of parameters on one core."""


@dataclass
class Seen:
    """Which embeddings a run used."""

    embedding_rows: int | None = None
    target_rows: int | None = None
    position_rows: list[int] = field(default_factory=list)
    called: set[str] = field(default_factory=set)
    """Submodules that ran."""


class Prober:
    """Runs one module in eval mode without gradients; enter ``untouched`` around it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        tensors = [*module.parameters(), *module.buffers()]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.sizes: tuple[tuple[int, int, int], ...] = ()
        """(B, T, S) at which the call was found; no two of them equal, so that no axis is taken for another."""
        self.pads = tuple(
            m.padding_idx for m in module.modules() if isinstance(m, nn.Embedding) and m.padding_idx not in (None, 0)
        )
        """Ids that an embedding keeps for padding: a model may hide them, or leave them out of its positions."""
        self.yes_or_no = False
        """Whether one number per text may be meant as two classes."""
        self.drift = Drift(module)
        self.calls = 0
        self._begin = time.process_time()  # of the processor: on a busy machine the answer is the same
        self.kept: dict[Any, Any] = {}
        """Measurements that two proofs share, by what was called and measured."""

    def seconds(self) -> float:
        """Of the processor, since the first call."""
        return (time.process_time() - self._begin) / torch.get_num_threads()

    @property
    def fixed(self) -> int | None:
        """The one T that runs, where the module takes no other."""
        lengths = {T for _, T, _ in self.sizes}
        return lengths.pop() if len(lengths) == 1 and self.sizes else None

    @property
    def length(self) -> int:
        """T of small batches."""
        return min((T for _, T, _ in self.sizes), default=5)

    def inputs(self, plan: CallPlan, B: int, T: int, seed: int, S: int | None = None, *, low: int = 1) -> Inputs:
        """A batch of random ids that the plan's model can read."""
        ids = self.ids(B, T, seed, high(plan), low=low)
        if plan.family != "encoder_decoder":
            return Inputs(ids)
        S = self.fixed or S or max(2, T - 2)
        return Inputs(ids, target_ids=self.ids(B, S, seed + 50, target_high(plan), low=low))

    def run(self, plan: CallPlan, inputs: Inputs) -> tuple[Run | None, Exception | None]:
        """What the module gives, or what it raised. The same random state before each run."""
        self.calls += 1
        before = {k: id(v) for k, v in vars(self.module).items()}
        seeded()
        tap = LossTap(self.module)
        try:
            with torch.no_grad(), tap, self.drift.during(), time_limit(FORWARD_SECONDS):
                output = raw_output(self.module, plan, inputs)
        except Exception as error:  # noqa: BLE001  (a stranger's forward may raise anything; the caller reports it)
            return None, error
        if inspect.iscoroutine(output):
            output.close()
        after = {k: v for k, v in vars(self.module).items() if before.get(k) != id(v) and not k.startswith("_")}
        return Run(output, after, [(logits, targets) for logits, targets, _ in tap.seen]), None

    def logits(self, plan: CallPlan, inputs: Inputs, *, seed: int = 0) -> Tensor:
        """Logits as training sees them, with the same random state each time; raises what the module raises."""
        self.calls += 1
        seeded(seed)
        with torch.no_grad(), self.drift.during(), time_limit(FORWARD_SECONDS):
            return call_logits(
                self.module,
                plan,
                inputs.input_ids,
                inputs.attention_mask,
                target_ids=inputs.target_ids,
                target_mask=inputs.target_mask,
                segment_ids=inputs.segment_ids,
            )

    def try_logits(self, plan: CallPlan, inputs: Inputs, *, seed: int = 0) -> Tensor | None:
        """Logits, or None where the module refuses this batch."""
        try:
            logits = self.logits(plan, inputs, seed=seed)
        except Exception:  # noqa: BLE001  (a stranger's forward may raise anything; None says that it refused)
            return None
        return logits

    def watched(self, plan: CallPlan, inputs: Inputs) -> Seen:
        """Which nn.Embedding or nn.EmbeddingBag receives the ids, which the positions 0…T-1, which submodules run."""
        seen = Seen()
        if plan.only_rows is not None:
            inputs = repeated(inputs, plan.only_rows)
        handles = []
        for name, module in self.module.named_modules():
            look = _look(seen, name, inputs)
            handles.append(module.register_forward_pre_hook(look))
        try:
            with _Lookups(seen, inputs):
                self.run(plan, inputs)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def ids(self, B: int, T: int, seed: int, below: int, *, low: int = 1) -> Tensor:
        """Random ids (B, T) from 1 to below - 1: id 0 is padding in many models, which may hide it from itself."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(low if below > 2 else 0, below, (B, T), generator=generator).to(self.device)
        return self.unpadded(ids, below)

    def unpadded(self, ids: Tensor, below: int) -> Tensor:
        """The ids with another one in the place of padding."""
        for pad in self.pads if below > len(self.pads) + 3 else ():
            ids = torch.where(ids == pad, (ids + 1 + len(self.pads)) % below, ids)
        return ids


def _look(seen: Seen, name: str, inputs: Inputs) -> Any:
    def look(module: nn.Module, given: tuple[Any, ...]) -> None:
        seen.called.add(name)
        first = given[0] if given else None
        # a class of its own may look up something else than it is given: positions (see _Lookups)
        plain = type(module).forward in (nn.Embedding.forward, nn.EmbeddingBag.forward)
        if plain and isinstance(first, Tensor) and not first.is_floating_point():
            _looked_up(seen, inputs, first, module.num_embeddings)  # type: ignore[arg-type]

    return look


def _looked_up(seen: Seen, inputs: Inputs, given: Tensor, rows: int) -> None:
    """Note what a table of so many rows was asked for."""
    places = torch.arange(inputs.input_ids.shape[1], device=given.device)

    def same(ids: Tensor | None) -> bool:
        """Whether the ids went in: as they are, transposed, or without the last or first of each row."""
        if ids is None:
            return False
        return any(
            given.shape == form.shape and torch.equal(given.to(form), form)
            for form in (ids, ids.t(), ids[:, :-1], ids.flatten(), ids[0], ids[:, :-1].t())
        )

    if same(inputs.input_ids):
        seen.embedding_rows = min(rows, seen.embedding_rows or rows)
    elif same(inputs.target_ids):
        seen.target_rows = min(rows, seen.target_rows or rows)
    elif given.numel() >= len(places) and torch.equal(given.flatten()[: len(places)], places):
        seen.position_rows.append(rows)


class _Lookups(TorchFunctionMode):
    """Sees which rows of which table are read, whatever module reads them, while it is entered."""

    def __init__(self, seen: Seen, inputs: Inputs) -> None:
        super().__init__()
        self._seen, self._inputs = seen, inputs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        both = func is F.embedding and len(args) > 1 and all(isinstance(a, Tensor) for a in args[:2])
        if both and not args[0].is_floating_point():
            _looked_up(self._seen, self._inputs, args[0], len(args[1]))
        return func(*args, **(kwargs or {}))


def high(plan: CallPlan) -> int:
    """Ids of the (source) batch stay below this."""
    if plan.family in ("encoder_decoder", "classifier"):
        return plan.embedding_rows or 3
    return min(plan.vocab_size, plan.embedding_rows or plan.vocab_size)


def target_high(plan: CallPlan) -> int:
    """Ids of the decoder's input stay below this."""
    return min(plan.vocab_size, plan.target_vocab or plan.vocab_size)


def seeded(seed: int = 0) -> None:
    """The same random state for every call."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes milliseconds where CUDA is not in use
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed)


def difference(first: Tensor, second: Tensor) -> Tensor:
    """Largest |difference| over V, (B, T) in float64; equal infinities and NaN differ by nothing.

    In pieces that stay in the processor's cache: of a large vocabulary the logits are hundreds of megabytes.
    """
    wide = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    rows, V = first.shape[:-1], first.shape[-1]
    ours, theirs = first.reshape(-1, V), second.reshape(-1, V)
    largest = torch.empty(len(ours), dtype=torch.float64, device=first.device)
    few = max(1, (_CACHED if first.device.type == "cpu" else _CACHED << 8) // max(1, V))
    for start in range(0, len(ours), few):
        apart = ours[start : start + few].to(wide) - theirs[start : start + few].to(wide)
        found = torch.linalg.vector_norm(apart, math.inf, dim=-1)
        if not bool(found.isfinite().all()):
            found = apart.abs().nan_to_num(nan=0.0, posinf=1e30).amax(-1)  # infinity minus itself is NaN
        largest[start : start + few] = found
    return largest.reshape(rows)


def close(first: Tensor, second: Tensor, limit: float) -> bool:
    """Whether they have one shape and differ nowhere by more than the limit."""
    return first.shape == second.shape and float(difference(first, second).max()) <= limit


def tolerance(logits: Tensor, share: float = 1e-5) -> float:
    """Absolute tolerance for logits of this size and number format.

    share: of the usual logit; float32 carries 1.2e-7, summed over a few layers. One column at -1e9 (a masked part of
    the vocabulary) must not excuse the rest. Of very many a million, spread over rows and columns, tell the size.
    """
    apart = max(1, logits.numel() // _SIZED)
    while math.gcd(apart, logits.shape[-1]) > 1 < apart:
        apart -= 1
    some = logits.reshape(-1)[::apart]
    finite = some[some.isfinite() & (some != 0)].abs()
    scale = min(float(finite.max()), 10 * float(finite.median())) if finite.numel() else 1.0
    return scale * max(share, 4 * torch.finfo(logits.dtype).eps)


def changed(ids: Tensor, t: int, below: int) -> Tensor:
    """The same ids with another token at t in every row."""
    low = 1 if below > 2 else 0
    other = ids.clone()
    other[:, t] = low + (ids[:, t] - low + max(1, (below - low) // 2)) % (below - low)
    return other


def changed_inputs(prober: Prober, plan: CallPlan, inputs: Inputs, t: int, *, target: bool = False) -> Inputs:
    """The same batch with another (target) token at t in every row."""
    if target and inputs.target_ids is not None:
        below = target_high(plan)
        return replace(inputs, target_ids=prober.unpadded(changed(inputs.target_ids, t, below), below))
    below = high(plan)
    return replace(inputs, input_ids=prober.unpadded(changed(inputs.input_ids, t, below), below))


def readable(tensor: Tensor) -> bool:
    """Dense numbers that can be compared: no sparse, nested or quantized tensor, no 8-bit float."""
    if tensor.is_nested or tensor.layout != torch.strided or not tensor.is_floating_point():
        return False
    return tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensors_in(output: Any, path: LogitsPath = ()) -> Iterator[tuple[LogitsPath, Tensor]]:
    """Floating tensors in tensors, tuples, lists, dicts, dataclasses and objects with attributes, with their paths."""
    if isinstance(output, Tensor):
        if readable(output):
            yield path, output
        return
    if len(path) >= _DEPTH or isinstance(output, nn.Module):
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
    if isinstance(output, Tensor) and output.is_nested:
        return "a nested tensor"
    if isinstance(output, Tensor) and output.layout != torch.strided:
        return f"a tensor of layout {str(output.layout).removeprefix('torch.')}"
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
        if not name.endswith("bias") and not is_lazy(p)
        if p.is_floating_point() and p.numel() and not bool(p.detach().any())
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

"""Tier 1: where gradients come from, and where they must not.

B batch, T time (of the text whose positions the logits belong to), D width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.checks.forward import why_not
from anyformer.checks.results import CheckResult, Series
from anyformer.checks.subject import Subject
from anyformer.models.calling import call_logits
from anyformer.models.calls.causal import measure
from anyformer.models.inputs import Inputs


def flow(subject: Subject) -> CheckResult:
    """Every weight that is to be trained gets a finite gradient that is not 0, and so does every position."""
    expected = "each trainable weight, and each position, gets a gradient"
    named = [(name, p) for name, p in subject.awake.named_parameters() if p.requires_grad]
    if not named:
        return CheckResult("gradients", 1, "fail", "no parameter asks for a gradient", expected, "requires_grad is off")
    inputs = subject.batch(0, 4)
    found = _gradients(subject, named, inputs)
    if found is None:
        cause = "no_grad, detach() or argmax on the way: nothing would be trained"
        return CheckResult("gradients", 1, "fail", "the logits depend on no weight", expected, cause)
    broken = [name for name, g in found if g is not None and not bool(g.isfinite().all())]
    if broken:
        cause = "a square root, a logarithm or a division at 0; −inf − −inf in a row that is masked whole"
        return CheckResult("gradients", 1, "fail", f"not finite: {_some(broken)}", expected, cause, broken[0])
    for seed in subject.limits.seeds:  # an expert that no token of one batch went to may get those of another
        if _still(found) or _dead_rows(subject, dict(found)):
            found = _together(found, _gradients(subject, named, subject.batch(seed, _MANY)) or [])
    if none := _still(found):
        cause = "its output is not used, is detached, or is multiplied by 0: it stays as it is"
        measured = f"{len(none)} of {len(found)} get none: {_some(none)}"
        return CheckResult("gradients", 1, "warn", measured, expected, cause, none[0])
    if dead := _dead_rows(subject, dict(found)):
        cause = "a head or a part of a layer is cut off, overwritten or multiplied by 0"
        return CheckResult("gradients", 1, "warn", dead[1], expected, cause, dead[0])
    try:
        with subject.training():
            places = None if subject.plan.packed or not subject.writes else _at_embedding(subject, inputs, slice(None))
    except _Detached:
        cause = "detach(), no_grad or rounding between the embedding and the first layer"
        return CheckResult("gradients", 1, "warn", "none reaches the embedding by way of the layers", expected, cause)
    if places is not None and not bool((places.amax((0, 2)) > 0).all()):
        at = int((places.amax((0, 2)) == 0).nonzero()[0])
        cause = "a token is cut off, replaced or detached before it is read"
        return CheckResult("gradients", 1, "warn", f"none reaches the token at {at}", expected, cause)
    frozen = [] if subject.trained else _frozen(subject.module)
    if frozen:
        cause = "fresh weights that are never trained stay noise: requires_grad is off"
        return CheckResult("gradients", 1, "warn", f"frozen: {_some(frozen)}", expected, cause, frozen[0])
    norms = tuple(0.0 if g is None else float(g.float().norm()) for _, g in found)
    bars = Series("bars", {"": norms}, tuple(name for name, _ in found), y_label="norm of the gradient")
    measured = f"{len(found)} parameters, and every position"
    return CheckResult("gradients", 1, "ok", measured, expected, series=(bars,))


_Named = tuple[str, Tensor | None]
_MANY = 16  # rows: tokens enough for every expert of a layer


def _gradients(subject: Subject, named: list[tuple[str, nn.Parameter]], inputs: Inputs) -> list[_Named] | None:
    """Of the loss on random targets, by name of the parameter; None where the logits depend on no weight."""
    with torch.enable_grad(), subject.training():
        logits = call_logits(subject.awake, subject.plan, inputs.input_ids, target_ids=inputs.target_ids)
        if not logits.requires_grad:
            return None
        generator = torch.Generator().manual_seed(0)
        targets = torch.randint(0, logits.shape[-1], logits.shape[:-1], generator=generator).to(logits.device)
        loss = F.cross_entropy(logits.float().flatten(0, -2), targets.flatten())
        grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return list(zip([name for name, _ in named], grads, strict=True))


def _together(found: list[_Named], more: list[_Named]) -> list[_Named]:
    """What either batch gave, as sums of absolute values."""
    others = dict(more)
    return [
        (n, others.get(n) if g is None else g if (o := others.get(n)) is None else g.abs() + o.abs()) for n, g in found
    ]


def _still(found: list[_Named]) -> list[str]:
    """Parameters without a gradient."""
    return [name for name, g in found if g is None or not bool(g.any())]


def _dead_rows(subject: Subject, grads: dict[str, Tensor | None]) -> tuple[str, str] | None:
    """Of the matrix of a linear layer in which whole rows or columns get no gradient: its name, and how many.

    At least a twentieth of one side, and side by side: units behind a ReLU rest by chance, here and there.
    Of the numbers of a classifier one is enough.
    """
    few = subject.plan.vocab_size if subject.plan.family == "classifier" else 0
    for name, layer in subject.awake.named_modules():
        if not isinstance(layer, nn.Linear | nn.MultiheadAttention):
            continue
        key = f"{name}.weight" if isinstance(layer, nn.Linear) else f"{name}.in_proj_weight"
        grad = grads.get(key)
        if grad is None:
            continue
        for axis, what in ((1, "outputs"), (0, "inputs")):
            still = "".join("x" if zero else " " for zero in (grad.abs().amax(axis) == 0).tolist())
            dead = max(map(len, still.split()), default=0)
            classes = axis == 1 and what == "outputs" and len(still) == few
            if (dead * 20 >= len(still) and dead > 3) or (classes and dead):
                return key, f"{still.count('x')} of {len(still)} {what} of {key} get none"
    return None


def _frozen(module: nn.Module) -> list[str]:
    """Matrices of layers that compute, of those that ask for no gradient; tables of embeddings may be fixed."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    named = [(n, p) for n, m in module.named_modules() if isinstance(m, nn.Linear) for p in (m.weight,)]
    return [
        f"{n}.weight" for n, p in named if isinstance(p, nn.Parameter) and not p.requires_grad and id(p) not in tables
    ]


_ROUNDING = 3e-6
"""Of a sum in float32, whose single operation rounds by 1.2e-7."""


class _Detached(Exception):
    """The embedding was read, and no gradient comes back to it."""


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def future_gradient(subject: Subject) -> CheckResult:
    """∂logits[t]/∂embedding[> t] is exactly 0; and each position's own embedding gets a gradient."""
    name, expected = "future gradient", "exactly 0 after t"
    if not subject.decodes or subject.plan.layout == "last" or subject.plan.packed:
        return CheckResult(name, 1, "n/a", why_not(subject))
    largest, where, usual = 0.0, (0, 0), 0.0
    for seed in subject.limits.seeds:
        inputs = subject.batch(seed, 2)
        T = subject.read(inputs).shape[1]
        for t in sorted({0, T // 2, max(0, T - 2)}):
            try:
                grad = _at_embedding(subject, inputs, t)
            except _Detached:
                return CheckResult(name, 1, "n/a", "no gradient reaches the embedding")
            except RuntimeError as error:
                return CheckResult(name, 1, "n/a", f"nothing runs backward in eval mode: {str(error)[:80]}")
            if grad is None:
                return CheckResult(name, 1, "n/a", "no nn.Embedding receives the ids, or nothing runs backward")
            usual = max(usual, float(grad[:, : t + 1].abs().max()))
            after = grad[:, t + 1 :].abs().amax(dim=(0, 2)) if t + 1 < T else grad.new_zeros(1)
            if float(after.max()) > largest:
                largest, where = float(after.max()), (t, t + 1 + int(after.argmax()))
    if not largest:
        return CheckResult(name, 1, "ok", "0 at every later position", expected)
    # a Fourier transform sums in an order that leaves rounding behind; the measurement in float64 tells it from a leak
    if largest < _ROUNDING * usual and measure(subject.prober, subject.plan, target=subject.two).causal:
        measured = f"{largest / usual:.1g} of that of earlier ones, which is rounding: in float64 no token moves them"
        return CheckResult(name, 1, "ok", measured, expected)
    cause = "the mask is missing, comes after the softmax, or is soft (a large negative number that is not enough)"
    measured = f"∂logits[{where[0]}]/∂embedding[{where[1]}] is up to {largest:.2g}"
    return CheckResult(name, 1, "fail", measured, expected, cause)


def _at_embedding(subject: Subject, inputs: Inputs, t: int | slice) -> Tensor | None:
    """∂Σ logits[:, t] / ∂embedding (B, T, D); None where it cannot be had. Raises _Detached."""
    seen: list[Tensor] = []
    ids = subject.read(inputs)

    def hook(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        first = given[0] if given else None
        if not isinstance(first, Tensor) or first.dim() != 2 or made.shape[:2] != first.shape:
            return made
        form = first.t() if subject.plan.time_first else first
        if form.shape[-1] < ids.shape[1] or not torch.equal(form[:, : ids.shape[1]].to(ids), ids):
            return made
        leaf = made.detach().requires_grad_()
        seen.append(leaf)
        return leaf.clone()  # to which a module may add in place

    tables = [m for m in subject.awake.modules() if isinstance(m, nn.Embedding)]
    handles = [m.register_forward_hook(hook) for m in tables]
    try:
        with torch.enable_grad():
            logits = call_logits(subject.awake, subject.plan, inputs.input_ids, target_ids=inputs.target_ids)
            if not seen or not logits.requires_grad:
                return None
            grads = torch.autograd.grad(logits[:, t].float().sum(), seen, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    found = [g.transpose(0, 1) if subject.plan.time_first else g for g in grads if g is not None]
    if not found:
        raise _Detached
    return torch.stack([g[:, : ids.shape[1]].abs() for g in found]).amax(0)

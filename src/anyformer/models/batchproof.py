"""The plan once more, on the very batches that training will use: their size, every row, training mode, gradients.

The call plan is measured on tiny batches in eval mode; a leak may begin at a longer T, in a later row or in training
mode only. B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding, Verdict
from anyformer.models.blame import blame
from anyformer.models.calling import call_logits
from anyformer.models.calls.backwards import not_differentiable, some_loss
from anyformer.models.calls.leaks import Looked, look, look_in_float64, seeded_logits
from anyformer.models.calls.precise import copy_in_float64, eager
from anyformer.models.calls.probing import difference, seeded, tolerance, woken
from anyformer.models.calls.strays import require_known_leaves
from anyformer.models.calls.ungraded import require_gradients
from anyformer.models.plan import CallPlan
from anyformer.models.probes import set_mode, untouched

PROOF_TOKENS = 4096
LEAST_ROWS = 8
"""Rows of the batch that are used: all of a small batch, of a large one at least eight."""
PROOF_LOGITS = 1 << 23
"""Logits that are looked at, at most, but for two rows: of a large vocabulary they are most of the memory of a run."""
_OWN = 0.5
_OWN_IN_TRAINING = 0.1
"""Of the changed tokens, how many must move their own logits; in training mode dropout may hide many."""
AGAIN_ROWS = 2
"""Rows of a batch that are looked at again while it trains."""
_SURE = 1e-3
"""Of the usual logit: what no rounding of float32 moves. Weights that have grown round more than fresh ones do."""


def prove_on_batch(
    module: nn.Module, plan: CallPlan, input_ids: Tensor, *, target_ids: Tensor | None = None
) -> list[Finding]:
    """Findings on a batch (B, T) in eval and in training mode; the module is left as it was.

    Causality of a decoder, and of an encoder-decoder on target_ids (B, S), its decoder's input. Of an encoder and a
    classifier: that the batch runs and gradients arrive.
    Raises CallError where a token changes logits before it (in training mode through BatchNorm it is a warning), where
    the forward pass fails, or where no gradient reaches the parameters. A decoder whose plan says that it is not causal
    is trained because the user insists: its leak is a warning.
    """
    length = max(input_ids.shape[1], 0 if target_ids is None else target_ids.shape[1])
    rows = max(LEAST_ROWS, PROOF_TOKENS // length)
    rows = min(rows, max(AGAIN_ROWS, PROOF_LOGITS // (length * plan.vocab_size)))
    ids = input_ids[:rows]
    read = None if target_ids is None else target_ids[:rows]
    findings = []
    causal = plan.family not in ("encoder", "classifier")
    awake = woken(module)[0] if causal else module  # weights at zero would hide what lies behind them
    double = copy_in_float64(awake) if causal else None
    for training in (False, True):
        with untouched(awake):
            set_mode(awake, training)
            try:
                with torch.set_grad_enabled(training):
                    finding = _mode(awake, double, plan, ids, read, training)
            except (CallError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                mode = "training" if training else "eval"
                raise CallError(
                    f"the model fails on a training batch {tuple(ids.shape)} in {mode} mode", blame(error)
                ) from error
            finally:
                awake.zero_grad(set_to_none=True)
        findings.append(finding)
    return [*findings, *_state(module, plan, ids, read), *_backward(module, plan, ids, read)]


def prove_again(
    module: nn.Module,
    plan: CallPlan,
    input_ids: Tensor,
    *,
    target_ids: Tensor | None = None,
    step: int,
    proven: int,
) -> None:
    """Once more while it trains, on two rows of a batch, with the weights, buffers and counters that it then has.

    Three forward passes of AGAIN_ROWS rows in training mode where all is well; the module is left as it was.
    step: the optimizer step that is named; proven: the last one at which it was proven.
    Raises CallError where a token now changes logits before it, or the input is now shifted. Nothing is looked at of
    an encoder, a classifier, or a decoder that was not causal to begin with.
    """
    if not plan.causal or plan.family in ("encoder", "classifier"):
        return
    ids = input_ids[:AGAIN_ROWS]
    read = None if target_ids is None else target_ids[:AGAIN_ROWS]
    if (ids if read is None else read).shape[1] < 2:
        return
    module = getattr(module, "_orig_mod", module)
    with _plain_numbers(module, ids.device), untouched(module, gradients=False), torch.no_grad():
        set_mode(module, True)
        seen = look(module, plan, ids, read, True, seconds=0.0, seed=step, seeds=False)
        if seen.leak is not None and not seen.normed and not _sure(module, plan, ids, read, step):
            seen = Looked(None, 0)
        if seen.leak is not None and not seen.normed:
            raise CallError(
                f"at step {step:,} the model sees the future: since then it only learns to copy the next token",
                f"in training mode {seen.leak}; at step {proven:,} nothing moved",
                "look for what lifts its causal mask while it trains: a counter, a schedule, a buffer, a gate"
                + (f"\nwhat was saved up to step {proven:,} is sound" if proven else ""),
            )
        if seen.leak is None and seen.checked and not seen.own:
            _mode(module, None, plan, input_ids, target_ids, True)  # more positions: dropout may have hidden these


def _sure(module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None, step: int) -> bool:
    """Whether what moves is more than rounding: large, or there in float64, too."""
    again = look(module, plan, ids, read, True, share=_SURE, seconds=0.0, seed=step, seeds=False)
    if again.leak is not None:
        return True
    double = copy_in_float64(module)
    return double is not None and look_in_float64(double, plan, ids, read, True).leak is not None


@contextmanager
def _plain_numbers(module: nn.Module, device: torch.device) -> Iterator[None]:
    """With gradients as in training, in the weights' own number format, and nothing compiled anew."""
    with ExitStack() as held:
        held.enter_context(torch.inference_mode(False))
        held.enter_context(torch.enable_grad())
        held.enter_context(torch.autocast(device.type, enabled=False))
        held.enter_context(eager(module))
        yield


def _state(module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None) -> list[Finding]:
    """A warning where a call in training mode depends on attributes that the one before left; buffers may."""
    calls = []
    with untouched(module), torch.no_grad():
        set_mode(module, True)
        for _ in range(2):
            with untouched(module, attributes=False):
                seeded()
                calls.append(call_logits(module, plan, ids, target_ids=read))
    if float(difference(*calls).nan_to_num().max()) <= tolerance(calls[0]):
        return []
    why = "a step would see what the batch before it held: a cache, a memory or a counter kept on the module"
    return [Finding("state in training mode", "warn", "a call changes the next one", "equal calls, equal logits", why)]


def _backward(module: nn.Module, plan: CallPlan, ids: Tensor, read: Tensor | None) -> list[Finding]:
    """One backward pass in training mode: it runs, and ends in the module's parameters.

    Raises CallError naming the line of an operation that overwrites what the pass needs, and weights that are no
    parameters. Parameters without a gradient are a warning.
    """
    with untouched(module):
        set_mode(module, True)
        module.zero_grad(set_to_none=True)

        def step() -> None:
            logits = seeded_logits(module, plan, ids, read, attached=True)
            require_known_leaves(module, logits, lambda: seeded_logits(module, plan, ids, read, attached=True))
            some_loss(logits).backward()  # type: ignore[no-untyped-call]

        try:
            with torch.enable_grad():
                step()
            without = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
        except (CallError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise not_differentiable(error, step) from error
        finally:
            module.zero_grad(set_to_none=True)
    if not without:
        return []
    require_gradients(module, plan, without)
    shown = ", ".join(without[:4]) + (" …" if len(without) > 4 else "")
    why = "the logits do not depend on them: they stay as they are"
    return [Finding("gradients", "warn", f"{len(without)} parameters get none: {shown}", "all get one", why)]


def _mode(
    module: nn.Module, double: nn.Module | None, plan: CallPlan, ids: Tensor, read: Tensor | None, training: bool
) -> Finding:
    if plan.family in ("encoder", "classifier"):
        logits = seeded_logits(module, plan, ids, read)
        mode = "training mode" if training else "training batches"
        if not bool(logits.isfinite().any()):
            return Finding(f"logits in {mode}", "note", "none is finite", reason="training stops at them")
        what = "gradients reach the parameters" if training else f"logits {tuple(logits.shape)}"
        return Finding(f"logits in {mode}", "ok", what)
    seen = look(module, plan, ids, read, training)
    exact = None
    if seen.leak is None and seen.checked and double is not None:
        exact = look_in_float64(double, plan, ids, read, training)
    length = ids.shape[1] if read is None else read.shape[1]
    return _finding(module, plan, seen, exact, length, training)


def _finding(
    module: nn.Module, plan: CallPlan, seen: Looked, exact: Looked | None, length: int, training: bool
) -> Finding:
    mode = "training mode" if training else "training batches"
    leak = seen.leak or (exact.leak if exact is not None else None)
    if seen.checked == 0 and leak is None:
        why = "the logits are NaN" if seen.nan else "equal calls differ (randomness that no seed controls)"
        verdict: Verdict = "note" if seen.nan or not training else "warn"
        return Finding(f"causality in {mode}", verdict, "not measured", "equal calls give equal logits", why)
    if leak is None:
        if plan.causal and seen.own < (_OWN_IN_TRAINING if training else _OWN) * seen.checked:
            raise CallError(
                f"logits[t] do not see token t{' in training mode' if training else f' at T = {length}'}: the model"
                " shifts its input there, not on the batches on which its call was measured",
                f"of {seen.checked} changed tokens {seen.own} moved their own logits",
                "shift the input (or the targets) in the same way at every length and in both modes",
            )
        numbers = "float64" if exact is not None and exact.checked else "float32"
        tried = f"{min(seen.checked, length - 1)} positions, in {numbers}"
        measured = f"no logit before a changed token moves (T = {length}, {tried})"
        return Finding(f"causality in {mode}", "ok", measured)
    if training and (seen.normed if seen.leak else exact is not None and exact.normed):
        norms = [f"{n} ({type(m).__name__})" for n, m in module.named_modules() if isinstance(m, _BatchNorm)]
        why = f"{', '.join(norms[:2])}{' …' if len(norms) > 2 else ''}: its statistics tell of the future while"
        why += " it trains; the held-out loss is measured without them; put nn.LayerNorm in its place"
        return Finding(f"causality in {mode}", "warn", leak, "no change before the changed token", why)
    if not plan.causal:
        why = "trained on the next token all the same, as asked: it learns to copy it"
        return Finding(f"causality in {mode}", "warn", leak, "no change before the changed token", why)
    small = "" if seen.leak else "; in float64: float32's rounding hides it, training would make it grow"
    copies = ": trained on the next token it would only learn to copy it" if seen.leak else ", a little"
    raise CallError(
        f"the model sees the future{copies}",
        f"on a batch of the training data{', in training mode only,' if training else ''} {leak}{small}",
        "give its attention a causal mask at every length, in every row and in both modes",
    )

"""Losses that a module gives beside its logits: of a router's load, of a codebook.

B batch, T time.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from anyformer.core.findings import Finding
from anyformer.models.calling import raw_output
from anyformer.models.calls.locating import Size
from anyformer.models.calls.probing import Prober, seeded, tensors_in
from anyformer.models.losstap import LossTap
from anyformer.models.plan import CallPlan, LogitsPath, path_text
from anyformer.models.probes import set_mode, untouched

_NAMED = re.compile(r"aux|balanc|router|z_?loss|load|kl|commit|penalty|regul|entropy", re.IGNORECASE)


def besides_finding(module: nn.Module, plan: CallPlan, sizes: tuple[Size, ...]) -> list[Finding]:
    """A warning where single numbers with a gradient come beside the logits, in training mode: they are left out.

    What the module computes from logits and targets itself is no such number. sizes: (B, T, S) at which the call runs.
    """
    if plan.needs_targets or plan.logits_from != "output" or plan.graph is not None or plan.methods:
        return []
    prober = Prober(module)
    prober.sizes = sizes
    inputs = prober.inputs(plan, *sizes[0][:2], 43, sizes[0][2])
    with untouched(module, gradients=False), torch.enable_grad():
        set_mode(module, True)
        seeded()
        try:
            with LossTap(module) as tap:
                output = raw_output(module, plan, inputs)
        except Exception:  # noqa: BLE001  (a stranger's forward may raise anything in training mode: batchproof tells)
            return []
    found = [_name(path) for path, t in tensors_in(output) if path != plan.logits_path and _is_loss(t)]
    if tap.seen:
        found = [name for name in found if _NAMED.search(name)]
    if not found:
        return []
    why = (
        "they have a gradient, and training leaves them out, as nothing says how much they weigh: a router may then"
        " send all tokens to few experts"
    )
    return [Finding("auxiliary losses", "warn", f"{', '.join(found)} beside the logits", "none", why)]


def _is_loss(tensor: Tensor) -> bool:
    return tensor.numel() == 1 and tensor.dim() <= 1 and tensor.requires_grad


def _name(path: LogitsPath) -> str:
    last = path[-1] if path else ""
    return last if isinstance(last, str) and last else path_text(path)

"""Evaluation mode for the length of a block, without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """``module.eval()`` without gradients; afterwards every submodule has the mode it had (some may be frozen in eval).

    no_grad, not inference_mode: a module that caches a mask or a rotary table on its first call would keep an inference
    tensor, and the next training step would fail with "Inference tensors cannot be saved for backward".
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training

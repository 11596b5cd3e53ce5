"""Running a module without the dropout that its author left on in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from torch import Tensor
from torch.nn import functional as F

_DROPS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")


@contextmanager
def calm() -> Iterator[None]:
    """Torch's dropout passes everything on, a new ``nn.Dropout`` of forward's and that inside attention included."""
    attention: Any = F.scaled_dot_product_attention

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, p: float = 0.0, *rest: Any, **more: Any
    ) -> Any:
        return attention(
            query, key, value, attn_mask, 0.0, *rest, **{k: v for k, v in more.items() if k != "dropout_p"}
        )

    def same(*given: Any, **named: Any) -> Any:
        return given[0] if given else named["input"]

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attend))
        for name in _DROPS:
            stack.enter_context(mock.patch.object(F, name, same))
        yield

"""Encoder-decoders that run only where their two texts have one length."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.models.callplan import infer_call_plan


class Stacked(nn.Module):
    """Its cross-attention stacks queries, keys and values."""

    def __init__(self, stack: bool = True) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(30, 16), nn.Embedding(30, 16)
        self.head, self.stack = nn.Linear(16, 30), stack

    def forward(self, enc_inputs: Tensor, dec_inputs: Tensor) -> Tensor:
        keys, queries = self.source(enc_inputs), self.target(dec_inputs)
        if self.stack:
            queries, keys, _ = torch.stack([queries, keys, keys])
        return self.head(queries + (queries @ keys.transpose(1, 2)).softmax(-1) @ keys)


def test_texts_of_one_length_alone_are_refused_by_that_reason() -> None:
    with pytest.raises(CallError, match="Stacked runs only where its two texts have the same length") as caught:
        infer_call_plan(Stacked())
    assert "enc_inputs (2, 5) and dec_inputs (2, 7):\ntest_onelength.py:" in caught.value.detail
    assert "stack expects each tensor to be equal size" in caught.value.detail
    assert infer_call_plan(Stacked(stack=False)).family == "encoder_decoder"


def test_what_fails_at_equal_lengths_too_is_told_as_it_is() -> None:
    class Broken(Stacked):
        def forward(self, enc_inputs: Tensor, dec_inputs: Tensor) -> Tensor:
            return super().forward(enc_inputs, dec_inputs)[..., :4] @ self.head.weight

    with pytest.raises(CallError, match="no way to call Broken"):
        infer_call_plan(Broken())

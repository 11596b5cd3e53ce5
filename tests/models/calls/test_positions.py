"""How long a forward at a longer sequence lasts, told from shorter ones; what gives no axis of time."""

from __future__ import annotations

import pytest
import torch

from anyformer.models.calls.outputs import rows_alone
from anyformer.models.calls.positions import _expected
from anyformer.models.calls.probing import Run


@pytest.mark.parametrize(
    ("took", "T", "seconds"),
    [
        ({16: 0.01, 64: 0.04}, 256, 0.16),  # with T
        ({16: 0.01, 64: 0.16}, 256, 2.56),  # with its square
        ({16: 0.04, 64: 0.05}, 256, 0.2),  # never by less than T
        ({2: 0.001, 64: 0.5}, 128, 1.0),  # what is too short for the clock tells nothing
        ({16: 0.01, 64: 0.16}, 64, 0.16),
        ({16: 0.01, 64: 0.0}, 256, 0.0),  # the processor's clock had not moved
        ({}, 64, 0.0),
    ],
)
def test_a_longer_forward_is_expected_to_grow_as_shorter_ones_did(
    took: dict[int, float], T: int, seconds: float
) -> None:
    assert _expected(took, T) == pytest.approx(seconds)


def test_numbers_per_text_have_no_axis_of_time() -> None:
    assert rows_alone(Run((torch.zeros(2, 5), torch.zeros(())), {}, []), 2)
    assert not rows_alone(Run(torch.zeros(2, 5, 7), {}, []), 2)
    assert not rows_alone(Run(torch.zeros(64, 7), {}, []), 2)  # (B · 32, V)
    assert not rows_alone(Run(torch.zeros(2, 5), {"hidden": torch.zeros(2, 32, 7)}, []), 2)
    assert not rows_alone(Run(None, {}, []), 2)

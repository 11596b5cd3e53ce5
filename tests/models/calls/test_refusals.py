"""Models of other things than text are refused by what they read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.models.callplan import infer_call_plan


class Captions(nn.Module):
    """Images and a text: neither runs on ids alone."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(3 * 49, 16)
        self.words = nn.Embedding(30, 16)
        self.head = nn.Linear(16, 30)

    def forward(self, images: Tensor, captions: Tensor) -> Tensor:
        assert images.shape[1:] == (3, 7, 7)
        return self.head(self.words(captions) + self.patches(images.flatten(1).float())[:, None])


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(11, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x))


@pytest.mark.parametrize(
    ("model", "words"),
    [(Captions, r"takes image input \(images\)"), (Rows, r"takes float features \(x\).*11 features")],
)
def test_what_it_reads_is_named(model: type[nn.Module], words: str) -> None:
    with pytest.raises(CallError, match=f"(?s){words}"):
        infer_call_plan(model())


@pytest.mark.parametrize("kind", ["generator", "sparse", "nested", "fp8"])
def test_an_output_that_cannot_be_read_is_no_sign_of_features(kind: str) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(30, 16), nn.Linear(16, 30)

        def forward(self, x: Tensor) -> object:
            y = self.head(self.words(x))
            if kind == "generator":
                return (row for row in y)
            if kind == "sparse":
                return y.to_sparse()
            return torch.nested.nested_tensor(list(y)) if kind == "nested" else y.to(torch.float8_e4m3fn)

    with pytest.raises(CallError, match="no way to call Odd") as caught:
        infer_call_plan(Odd())
    assert "float features" not in str(caught.value)


@pytest.mark.parametrize("flat", [True, False])
def test_one_number_per_text_is_told_with_the_way_to_classes(flat: bool) -> None:
    class Score(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.head = nn.Embedding(30, 8), nn.Linear(8, 1)

        def forward(self, ids: Tensor) -> Tensor:
            z: Tensor = self.head(self.emb(ids).mean(1))
            return z[:, 0] if flat else z

    with pytest.raises(CallError, match="Score gives one number per text, no logits") as caught:
        infer_call_plan(Score())
    assert "if it is a yes or no (binary cross-entropy): call: family: classifier" in str(caught.value)


class Halved(nn.Module):
    """Its own mistake: the width is halved on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(30, 16), nn.Linear(16, 30)

    def forward(self, ids: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(self.words(ids)[..., :8] * scale)


class TwoWays(Halved):
    """Fails in one way with a mask and in another without."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        if mask.dtype == torch.bool:
            raise ValueError("a mask of numbers is wanted")
        return super().forward(ids)


def test_the_line_at_which_every_call_ended_is_named_first() -> None:
    with pytest.raises(CallError) as caught:
        infer_call_plan(Halved())
    first, second, *_ = caught.value.fix.splitlines()
    line = Halved.forward.__code__.co_firstlineno + 1
    assert (
        first
        == f"every call ended with an error at test_refusals.py:{line}: if that line is at fault, mend it there; else"
    )
    assert second.startswith("forward should take ids")
    with pytest.raises(CallError) as caught:
        infer_call_plan(TwoWays())
    assert caught.value.fix.startswith("forward should take ids")


def test_what_gives_back_what_it_is_given_reads_no_features() -> None:
    class First(nn.Module):
        """encode() is to be called before."""

        def __init__(self) -> None:
            super().__init__()
            self.words, self.head, self.memory = nn.Embedding(30, 16), nn.Linear(16, 30), None

        def forward(self, x: Tensor) -> Tensor:
            return x if self.memory is None else self.head(self.words(x) + self.memory)

    with pytest.raises(CallError, match="no way to call First"):
        infer_call_plan(First())

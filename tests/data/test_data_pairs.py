"""Padded batches: what is in them, and that an epoch's order is a function of seed and epoch that can be resumed."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from anyformer.core.errors import DataError
from anyformer.data.examples import Examples
from anyformer.data.pairs import (
    LengthBatches,
    PaddedExamples,
    PairDataModule,
    Ragged,
    encode_examples,
    like_batches,
    padding_finding,
    padding_share,
)
from anyformer.data.shares import SharedItems, Spare
from anyformer.tokenization import CharacterLevelTokenizer

PAD, BOS, EOS = 0, 2, 3
TOKENIZER = CharacterLevelTokenizer(40, texts=["abcdefghij"])


def examples(count: int = 30) -> Examples:
    first = tuple("abcdefghij"[: 1 + i % 9] for i in range(count))
    return Examples("seq2seq", "pairs", "", first, tuple(text[::-1] + "a" for text in first))


def encoded(count: int = 30) -> PaddedExamples:
    return encode_examples(examples(count), TOKENIZER, 32, start_end=(BOS, EOS))[0]


def test_a_batch_holds_the_texts_and_nothing_else() -> None:
    data = encoded()
    batch = data.__getitems__([0, 8, 3]).tensors
    texts = [examples().first[i] for i in (0, 8, 3)]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 9)
    assert batch["target_ids"].shape == batch["target_mask"].shape == batch["labels"].shape == (3, 12)
    for row, text in enumerate(texts):
        ids = list(TOKENIZER.encode(text))
        written = [BOS, *TOKENIZER.encode(text[::-1] + "a"), EOS]
        assert batch["input_ids"][row].tolist() == ids + [PAD] * (9 - len(ids))
        assert batch["attention_mask"][row].tolist() == [1] * len(ids) + [0] * (9 - len(ids))
        assert batch["target_ids"][row].tolist() == written + [PAD] * (12 - len(written))
        assert batch["labels"][row].tolist() == written + [-100] * (12 - len(written))
    assert batch["tokens"] == sum(len(text) + len(text) + 3 for text in texts)


def test_classes() -> None:
    data = Examples("classification", "c", "", ("ab", "abc", "a"), ("no", "yes", "no"))
    padded, facts, notes = encode_examples(data, TOKENIZER, 2, classes=("no", "yes"))
    batch = padded.__getitems__([1, 0]).tensors
    assert batch["labels"].tolist() == [1, 0]
    assert batch["input_ids"].shape == (2, 2)
    assert facts == {"documents": 3, "bytes": 6, "tokens": 5}
    assert [note.measured for note in notes] == ["1 of 3 examples of c cut to 2 tokens"]


def test_what_is_cut_does_not_end() -> None:
    data = Examples("seq2seq", "p", "", ("ab", "abcdef"), ("ab", "abcdef"))
    padded, _, notes = encode_examples(data, TOKENIZER, 4, start_end=(BOS, EOS))
    short, long = (padded.__getitems__([i]).tensors["target_ids"][0].tolist() for i in (0, 1))
    assert short == [BOS, *TOKENIZER.encode("ab"), EOS]
    assert long == [BOS, *TOKENIZER.encode("abc")]
    assert notes[0].measured.startswith("1 of 2")


def batches(epoch: int = 0, exact: bool = True, size: int = 4, world: tuple[int, int] = (0, 1)) -> LengthBatches:
    keys = encoded(50).keys(exact)
    return LengthBatches(keys, size, seed=5, epoch=epoch, rank=world[0], world_size=world[1])


@pytest.mark.parametrize("exact", [True, False])
def test_every_example_once_and_of_like_length(exact: bool) -> None:
    order = batches(exact=exact)
    got = list(order)
    assert sorted(item for batch in got for item in batch) == list(range(50))
    assert len(got) == len(order)
    lengths = encoded(50).first.lengths
    widths = {int(lengths[batch].max() - lengths[batch].min()) for batch in got}
    assert max(widths) == 0 if exact else max(widths) < 4
    assert {len(batch) for batch in got} <= {1, 2, 3, 4}


def test_the_order_belongs_to_seed_and_epoch() -> None:
    assert list(batches(0)) == list(batches(0))
    first, second = list(batches(0)), list(batches(1))
    assert first != second
    assert {tuple(sorted(b)) for b in first} != {tuple(sorted(b)) for b in second}  # other examples meet
    other = LengthBatches(encoded(50).keys(True), 4, seed=6)
    assert list(other) != first


def test_a_resumed_epoch_goes_on_with_the_very_next_batch() -> None:
    whole = list(batches(2))
    order = batches()
    order.resume_at(2, 5)
    assert list(order) == whole[5:]
    assert list(order) == whole  # only the first pass


def test_ranks_share_every_batch() -> None:
    whole = list(batches(size=5))
    parts = [list(batches(size=5, world=(rank, 2))) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    assert any(isinstance(items, Spare) for items in parts[1])  # a batch of one
    joined = [[i for part in pair if not isinstance(part, Spare) for i in part] for pair in zip(*parts, strict=True)]
    assert joined == whole


def test_a_spare_example_counts_nothing() -> None:
    data = SharedItems(encoded(8))
    (own,), (spare,) = (data.__getitems__(items).tensors["labels"] for items in ([3], Spare([3])))
    assert (own != -100).any()
    assert (spare == -100).all()


def test_the_loader_resumes() -> None:
    def module() -> PairDataModule:
        return PairDataModule(encoded(), encoded(7), batch_size=4, seed=1)

    loader = module().train_dataloader()
    whole = [batch["input_ids"] for batch in loader]
    resumed = module().train_dataloader()
    resumed.load_state_dict({"position": 3, "batch_size": 4})
    rest = [batch["input_ids"] for batch in resumed]
    assert len(rest) == len(whole) - 3
    with pytest.raises(DataError, match="batch_size 8, and goes on with 4"):
        module().train_dataloader().load_state_dict({"position": 3, "batch_size": 8})
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[3:], strict=True))


def test_held_out_examples_come_once_or_spread() -> None:
    module = PairDataModule(encoded(), encoded(27), batch_size=4, exact=True)
    assert sum(len(batch["labels"]) for batch in module.val_dataloader()) == 27
    module.val_limit = 5
    assert sum(len(batch["labels"]) for batch in module.val_dataloader()) == 5
    groups = like_batches(encoded(27), 4, exact=True)
    assert sorted(item for group in groups for item in group) == list(range(27))
    lengths = encoded(27).first.lengths
    assert all(len({int(n) for n in lengths[group]}) == 1 for group in groups)


def test_rows_of_ids() -> None:
    rows = Ragged.of([[1, 2], [3], [4, 5, 6]])
    assert [rows.row(i).tolist() for i in range(3)] == [[1, 2], [3], [4, 5, 6]]
    assert rows.lengths.tolist() == [2, 1, 3]
    assert list(islice(np.asarray(rows.ends), 3)) == [2, 3, 6]


@pytest.mark.parametrize("exact", [False, True])
def test_the_share_of_padding_is_that_of_the_batches(exact: bool) -> None:
    data = encoded(40)
    batches = like_batches(data, 7, exact)
    total = pads = 0
    for items in batches:
        batch = data.__getitems__(items).tensors
        for name in ("attention_mask", "target_mask"):
            total += batch[name].numel()
            pads += int((batch[name] == 0).sum())
    assert padding_share(data, batches) == pytest.approx(pads / total)
    finding = padding_finding(data, 7, exact)
    assert finding.measured == f"{pads / total:.1%} of the tokens in a batch"
    mixed = float(finding.reason.split("; ")[1].split("%")[0]) / 100
    assert mixed > pads / total + 0.1

"""A tokenizer for any vocabulary size: pretrained, BPE, characters or the user's own, whichever fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from anyformer.core.errors import TokenizerError
from anyformer.core.findings import Finding
from anyformer.core.places import default_cache_dir
from anyformer.core.protocols import View
from anyformer.core.view import PlainView
from anyformer.tokenization import choose
from anyformer.tokenization.base import TextTokenizer
from anyformer.tokenization.cells import cell_text, described, way_out
from anyformer.tokenization.choose import Strategy, Texts, choose_tokenizer
from anyformer.tokenization.columns import SAMPLE_ROWS, TextColumn, asked_column, pick_column
from anyformer.tokenization.texts import is_frame, training_texts
from anyformer.tokenization.validator import TokenizerValidator

Tell = Callable[[Finding], object]


class AdaptiveTokenizer:
    """Finds or makes the tokenizer for a model. The order: your own, a pretrained one, BPE, characters."""

    @staticmethod
    def detect_strategy(vocab_size: int, dataset_size: int | None = None, own: str | Path | None = None) -> Strategy:
        """How ``load_or_create`` would get it: "user_upload", "pretrained", "train_bpe" or "character".

        dataset_size: number of texts (a long text counts once per 1,000 characters). own: a tokenizer of your own.
        Asks no network: a pretrained tokenizer that cannot be had then falls to one that is made.
        """
        return choose.detect_strategy(vocab_size, dataset_size, own)

    @staticmethod
    def load_or_create(
        vocab_size: int,
        dataset: Any = None,
        cache_dir: str | Path | None = None,
        *,
        tokenizer: str | Path = "auto",
        text_column: str | None = None,
        special_tokens: Sequence[str] = (),
        view: View | None = None,
    ) -> TextTokenizer:
        """A tokenizer with at most ``vocab_size`` ids, the rows of the model's embedding. Its ``findings`` say why.

        dataset: texts to learn from: a list of strings, anything that gives strings each time it is iterated, a
        Dataset or a dict of columns, a Path (UTF-8 text), or a function that gives the texts anew; what an iterator
        gives is kept in a temporary file.
        cache_dir: tokenizers are kept there by content; ``~/.cache/anyformer/tokenizers`` where not given.
        tokenizer: "auto", "bpe", "char", "hf:OWNER/NAME", or a file or folder of your own.
        text_column: the column that holds the text; where not given it is found as for training: by its name, else the
        longest texts. special_tokens: further ones that a trained tokenizer has.
        The choice and its reason are printed; ``view``: where to. Raises TokenizerError where nothing fits.
        """
        if not isinstance(tokenizer, str | Path):
            raise TokenizerError(
                f"tokenizer is a {type(tokenizer).__name__}; load_or_create takes a name or a path",
                fix="one that is there can be used as it is; TokenizerValidator.validate says if it fits",
            )
        columns: dict[Finding, None] = {}  # told each time the texts are read
        texts = texts_of(dataset, text_column, columns.setdefault)
        place = Path(cache_dir) if cache_dir is not None else default_cache_dir() / "tokenizers"
        made, found = choose_tokenizer(str(tokenizer), vocab_size, texts, tuple(special_tokens), cache_dir=place)
        # lossless and special tokens are told by the findings of the choice; here it must fit and hold together
        TokenizerValidator.validate(made, vocab_size, special_tokens=(), lossless=False, samples=0)
        found = [found[0], *columns, *found[1:]]
        shown = view or PlainView()
        for finding in found:
            shown.finding(finding)
        made.findings = found
        return made


def _untold(finding: Finding) -> None:
    """For those who do not ask which column it is."""


def texts_of(dataset: Any, text_column: str | None = None, tell: Tell = _untold) -> Texts | None:
    """A function that gives the texts of a dataset anew at each call; None where there is no dataset.

    tell: hears, whenever texts are read from a table, which of its columns they are from.
    Raises TokenizerError for a path, a column that is missing, or items that are no strings.
    """
    if dataset is None:
        return None
    if isinstance(dataset, str):
        raise TokenizerError(
            f"dataset is {dataset!r:.80}: a string, not texts",
            fix="[text] for one text, pathlib.Path(name) for a file of text,\n"
            "anyformer.data.open_corpus(name) for folders, tables and python-stdlib",
        )
    if isinstance(dataset, Path):
        return training_texts(dataset)
    if is_frame(dataset):
        dataset = dataset.to_dict("list")
    if isinstance(dataset, Mapping):
        if dataset and all(_is_split(part) for part in dataset.values()):  # a DatasetDict: its training split
            part = dataset["train"] if "train" in dataset else next(iter(dataset.values()))
            return texts_of(part, text_column, tell)
        chosen = _column({name: list(islice(values, SAMPLE_ROWS)) for name, values in dataset.items()}, text_column)
        return lambda: _cells(lambda column: dataset[column], chosen, tell)
    if _is_split(dataset) and hasattr(dataset, "iter"):
        head = list(islice(iter(dataset), SAMPLE_ROWS))
        chosen = _column(_as_columns(head, dataset.column_names or ()), text_column)
        return lambda: _cells(
            lambda column: (text for batch in dataset.iter(batch_size=1000) for text in batch[column]), chosen, tell
        )
    if callable(dataset):
        return lambda: _strings(_plain(dataset(), text_column, tell))
    if not isinstance(dataset, Iterable):
        raise TokenizerError(f"dataset is {type(dataset).__name__}, not texts", fix="a list of strings, or a Dataset")
    if isinstance(dataset, Iterator):
        return training_texts(_strings(_plain(dataset, text_column, tell)))
    return lambda: _strings(_plain(dataset, text_column, tell))


def _strings(texts: Iterable[Any]) -> Iterator[str]:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TokenizerError(
                f"text {number:,} is {text!r:.60} ({type(text).__name__}); a tokenizer learns from strings"
            )
        yield text


def _cells(values: Callable[[str], Iterable[Any]], chosen: TextColumn | None, tell: Tell) -> Iterator[str]:
    """The texts of the chosen column; a missing one is no text, as the data layer has it. None: of no rows."""
    if chosen is None:
        return
    tell(chosen.finding)
    for number, value in enumerate(values(chosen.name), start=1):
        text = cell_text(value, chosen.nested)
        if text is None:
            raise TokenizerError(
                f"row {number:,}: column {chosen.name!r} holds {value!r:.60} ({type(value).__name__}), not text",
                fix="text_column='…' names another",
            )
        if text:
            yield text


def _is_split(dataset: Any) -> bool:
    return hasattr(dataset, "column_names") and hasattr(dataset, "features")


def _plain(items: Iterable[Any], text_column: str | None, tell: Tell) -> Iterator[Any]:
    """The items, or of rows the text column of each."""
    iterator = iter(items)
    first = list(islice(iterator, 1))
    if first and isinstance(first[0], Mapping):
        head = first + list(islice(iterator, SAMPLE_ROWS - 1))
        if odd := [row for row in head if not isinstance(row, Mapping)]:
            raise TokenizerError(f"the dataset holds rows and {odd[0]!r:.60} ({type(odd[0]).__name__})")
        chosen = _column(_as_columns(head), text_column)
        yield from _cells(lambda column: (row.get(column) for row in chain(head, iterator)), chosen, tell)
    else:
        yield from first
        yield from iterator


def _as_columns(rows: list[Any], names: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The values of each column; None where a row lacks one."""
    every = dict.fromkeys([*names, *(name for row in rows for name in row)])
    return {name: [row.get(name) for row in rows] for name in every}


def _column(columns: Mapping[str, list[Any]], named: str | None) -> TextColumn | None:
    """The column that holds text, by the rule of the data layer, and why; None where there are no rows."""
    have = f"it has {', '.join(map(str, columns)) or 'none'}"
    if named is not None:
        if named not in columns:
            raise TokenizerError(f"the dataset has no column {named!r}", have)
        return asked_column(named, columns[named])
    picked = pick_column(columns)
    if picked is None and any(columns.values()):
        made = way_out(columns)
        raise TokenizerError(
            "the dataset has no column with text",
            described(columns),
            f"give its texts as a list: [{made[1]} for v in (row[{made[0]!r}] for row in data)]"
            if made
            else "give a column of text",
        )
    return picked

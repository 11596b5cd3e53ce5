"""Which columns and files other data of a run has."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyformer.core.errors import DataNotFound
from anyformer.data.examples import Columns
from anyformer.training.examples import held_out_columns


@pytest.mark.parametrize("data", ["pairs.tsv", "pairs.jsonl", "pairs.csv.gz", "hf:someone/pairs"])
def test_a_run_on_two_files_is_evaluated_on_a_table(data: str) -> None:
    columns = Columns(source="a", target="b", target_data="train.en")
    assert held_out_columns(columns, data) == Columns(source="a", target="b", target_data=None)


def test_or_on_two_files_of_one_name(tmp_path: Path) -> None:
    columns = Columns(target_data="train.en")
    (tmp_path / "val.en").write_text("x")
    assert held_out_columns(columns, str(tmp_path / "val.de")).target_data == str(tmp_path / "val.en")
    assert held_out_columns(Columns(), "val.de") == Columns()
    with pytest.raises(DataNotFound, match="no file to write belongs to"):
        held_out_columns(columns, str(tmp_path / "test.de"))

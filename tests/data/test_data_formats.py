"""Every format, plain and compressed, through one door; folders, globs, and memory that does not grow."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from anyformer.core.errors import DataError, DataNotFound
from anyformer.data import open_corpus
from anyformer.data.jsonrows import json_table

ROWS = [{"id": n, "title": f"t{n}", "text": f'some "quoted", [text] {{}}\nnumber {n} é 😀'} for n in range(300)]
TEXTS = [row["text"] for row in ROWS]


def as_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def as_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=1, ensure_ascii=False))


def as_strings(path: Path) -> None:
    path.write_text(json.dumps(TEXTS))


def as_columns(path: Path) -> None:
    path.write_text(json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}))


def as_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def as_tsv(path: Path) -> None:
    lines = ["id\ttext", *(f"{n}\t{text.splitlines()[0]}" for n, text in enumerate(TEXTS))]
    path.write_text("\n".join(lines) + "\n")


def as_parquet(path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=37)


def as_arrow_stream(path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=41)


def as_arrow_file(path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    with ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=41)


def plain(path: Path) -> Path:
    return path


def gzipped(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return packed


def zstandard(path: Path) -> Path:
    packed = path.with_name(path.name + ".zst")
    with pyarrow.CompressedOutputStream(str(packed), "zstd") as sink:
        sink.write(path.read_bytes())
    path.unlink()
    return packed


TABLES: list[tuple[str, Callable[[Path], None]]] = [
    ("a.jsonl", as_jsonl),
    ("lines.json", as_jsonl),
    ("objects.json", as_json),
    ("strings.json", as_strings),
    ("columns.json", as_columns),
    ("a.csv", as_csv),
    ("a.tsv", as_tsv),
    ("a.parquet", as_parquet),
    ("stream.arrow", as_arrow_stream),
    ("file.arrow", as_arrow_file),
]


@pytest.mark.parametrize("pack", [plain, gzipped, zstandard])
@pytest.mark.parametrize(("name", "make"), TABLES, ids=[name for name, _ in TABLES])
def test_every_table_plain_and_packed(
    tmp_path: Path, name: str, make: Callable[[Path], None], pack: Callable[[Path], Path]
) -> None:
    make(tmp_path / name)
    corpus = open_corpus(pack(tmp_path / name))
    expected = [text.splitlines()[0] for text in TEXTS] if name.endswith(".tsv") else TEXTS
    assert list(corpus) == expected == list(corpus)
    assert not corpus.single_text
    assert [f.measured for f in corpus.findings if f.name == "text column"] == ["text"]


@pytest.mark.parametrize("pack", [plain, gzipped, zstandard])
@pytest.mark.parametrize("name", ["a.txt", "a.md"])
def test_one_text_plain_and_packed(tmp_path: Path, name: str, pack: Callable[[Path], Path]) -> None:
    text = "\ufeff" + "".join(f"line {n} é 世界\r\n" for n in range(20_000))
    (tmp_path / name).write_bytes(text.encode())
    corpus = open_corpus(pack(tmp_path / name))
    assert corpus.text is not None
    assert "".join(corpus) == text[1:]
    assert corpus.text.size == len(text[1:].encode())
    cut = corpus.text.cut(0.25)
    assert "".join(corpus.text.pieces(cut)).encode() == text[1:].encode()[cut:]
    assert "".join(corpus.text.pieces(0, cut)).encode() == text[1:].encode()[:cut]


def test_the_same_text_packed_has_the_same_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text\n" * 9999)
    before = open_corpus(tmp_path / "a.txt").scan.fingerprint
    assert open_corpus(zstandard(tmp_path / "a.txt")).scan.fingerprint == before


@pytest.mark.parametrize(("pack", "suffix"), [(gzipped, ".gz"), (zstandard, ".zst")])
def test_a_packed_file_that_is_cut_or_changed(tmp_path: Path, pack: Callable[[Path], Path], suffix: str) -> None:
    as_jsonl(tmp_path / "a.jsonl")
    whole = pack(tmp_path / "a.jsonl")
    content = whole.read_bytes()
    for name, damaged in (("cut", content[: len(content) // 2]), ("not", b"this is plain text" * 9)):
        bad = tmp_path / f"{name}.jsonl{suffix}"
        bad.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{name}\.jsonl{suffix} .*(cannot be unpacked|cut off)") as caught:
            list(open_corpus(bad))
        assert "fetch" in str(caught.value) or "mend" in str(caught.value)


def test_several_gzip_and_zstd_members_are_one_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    assert list(open_corpus(tmp_path / "a.txt.gz")) == ["one two"]
    for name in ("1", "2"):
        (tmp_path / f"{name}.txt").write_text(f"part {name} ")
    parts = [zstandard(tmp_path / f"{name}.txt").read_bytes() for name in ("1", "2")]
    (tmp_path / "b.txt.zst").write_bytes(b"".join(parts))
    assert list(open_corpus(tmp_path / "b.txt.zst")) == ["part 1 part 2 "]


def test_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "deep").mkdir(parents=True)
    for name in ("data/b.txt", "data/a.txt", "data/deep/c.txt", "data/d.md"):
        (tmp_path / name).write_text(name)
    assert list(open_corpus("data/*.txt")) == ["data/a.txt", "data/b.txt"]
    assert list(open_corpus("data/**/*.txt")) == ["data/a.txt", "data/b.txt", "data/deep/c.txt"]
    assert open_corpus("data/[d]*.md").single_text
    with pytest.raises(DataNotFound, match=r"no file matches data/\*\.csv"):
        open_corpus("data/*.csv")
    (tmp_path / "what?.txt").write_text("itself")
    assert list(open_corpus("what?.txt")) == ["itself"]


def test_globs_of_tables_in_parts(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"part-{number}.jsonl").write_text(json.dumps({"text": f"text {number}"}) + "\n")
    gzipped(tmp_path / "part-1.jsonl")
    assert list(open_corpus(tmp_path / "part-*")) == ["text 0", "text 1", "text 2"]
    (tmp_path / "part-3.csv").write_text("text\nx\n")
    with pytest.raises(DataError, match="several kinds"):
        open_corpus(tmp_path / "part-*")


def test_a_folder_with_packed_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    gzipped(tmp_path / "b.txt")
    (tmp_path / "c.bin.gz").write_bytes(gzip.compress(b"\0\1\2"))
    corpus = open_corpus(tmp_path)
    assert list(corpus) == ["one", "two"]
    assert [f.measured for f in corpus.findings if f.name == "files skipped"] == ["1 binary: c.bin.gz"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=4), min_size=1, max_size=12),
    size=st.integers(8, 40),
)
def test_json_in_pieces_of_any_size_is_what_json_says(
    rows: list[dict[str, object]], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(rows, ensure_ascii=False).replace("\\u0000", "0"), encoding="utf-8", errors="ignore")
    expected = json.loads(path.read_text("utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyformer.data.reading.CHUNK_BYTES", size)
        assert [row for _, row in json_table(path).records()] == expected


@pytest.mark.parametrize("size", range(8, 20))
def test_a_number_is_not_cut_by_the_end_of_a_piece(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.data.reading.CHUNK_BYTES", size)
    path = tmp_path / "a.json"
    path.write_text('{"n": [12345678, -1.5e10, 9], "text": ["one", "two", "three"]}')
    rows = [row for _, row in json_table(path).records()]
    assert rows == [{"n": 12345678, "text": "one"}, {"n": -1.5e10, "text": "two"}, {"n": 9, "text": "three"}]


MEMORY = """
import json, resource, sys
from anyformer.data import open_corpus
peaks = []
for path in sys.argv[1:]:
    assert sum(map(len, open_corpus(path))) > 0
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps(peaks))
"""


@pytest.mark.soak
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    makes: dict[str, Callable[[int], bytes]] = {
        "line.txt": lambda n: b"x" * (n * 60),
        "line.txt.gz": lambda n: gzip.compress(b"x" * (n * 60), 1),
        "rows.json": lambda n: json.dumps([{"text": "some words " * 5}] * n).encode(),
        "columns.json": lambda n: json.dumps({"n": [1] * n, "text": ["some words " * 5] * n}).encode(),
        "rows.csv": lambda n: (
            b"text\n" + b"some words that are repeated, so that they are long\n".replace(b",", b"") * n
        ),
    }
    for name, make in makes.items():
        (tmp_path / f"small.{name}").write_bytes(make(500))
        (tmp_path / f"big.{name}").write_bytes(make(150_000))  # 8 … 12 MB
    files = [tmp_path / f"{size}.{name}" for size in ("small", "big") for name in makes]
    done = subprocess.run([sys.executable, "-c", MEMORY, *files], capture_output=True, text=True, check=True)
    peaks = json.loads(done.stdout)
    assert peaks[-1] - peaks[len(makes) - 1] < 5  # MB, for all of them

"""Datasets from a hub on loopback: layouts, redirects, and every refusal in plain words within seconds.

The libraries read HF_ENDPOINT when they are imported, so one child process asks, case by case.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from anyformer.core.errors import DataError, DataNotFound
from anyformer.data.hub import HubReference, _in_words, hub_dataset, is_hub_name, parse_reference
from tests.hub_server import Fault, HubServer, parquet, textbooks_files, wikitext_files

CHILD = """
import json, os, resource, signal, sys, time
from anyformer.core.errors import DataError
from anyformer.data import DatasetLoader, open_corpus
for line in sys.stdin:
    begin, (kind, arguments) = time.monotonic(), json.loads(line)
    try:
        if kind == "corpus":
            os.environ["HF_TOKEN"] = arguments.pop() if len(arguments) > 1 else ""
        if kind == "full":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (arguments.pop(), resource.RLIM_INFINITY))
        if kind == "corpus":
            opened = open_corpus(*arguments)
            answer = {"name": opened.name, "texts": list(opened)}
        else:
            opened = DatasetLoader(preprocessing=False, min_length=0)
            dataset = opened.load_huggingface(*arguments)
            answer = {"name": type(dataset).__name__, "texts": dataset[dataset.column_names[-1]][:]}
        answer["findings"] = [[f.name, f.measured] for f in opened.findings]
        answer["reasons"] = {f.measured: f.reason for f in opened.findings if f.verdict == "warn"}
    except DataError as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps({**answer, "seconds": time.monotonic() - begin}), flush=True)
"""
LINES = [f"line {n} of some text\n" for n in range(30)]
BOOKS = [f"chapter {n} of a tiny textbook" for n in range(20)]
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.put("Salesforce/wikitext", wikitext_files(LINES))
        server.put("nampdn-ai/tiny-textbooks", textbooks_files(BOOKS))
        server.moved["me/moved"] = "nampdn-ai/tiny-textbooks"
        server.put("me/gated", textbooks_files(BOOKS), gated=True)
        server.put("me/private", textbooks_files(BOOKS), token="secret")
        server.put("me/nothing", {"README.md": b"# nothing"})
        server.put("me/script", {"README.md": b"# x", "script.py": b"raise SystemExit"})
        server.put("li2017dailydialog/daily_dialog", {"README.md": b"# x", "daily_dialog.py": b"raise SystemExit"})
        server.put("me/norows", {**textbooks_files(BOOKS), "test.parquet": parquet({"textbook": []})})
        server.put("me/damaged", {"README.md": b"# x", "train.parquet": b"PAR1 this is no table PAR1"})
        server.put("me/numbers", {"README.md": b"# x", "train.parquet": parquet({"n": [1, 2]})})
        jsonl = "".join(json.dumps({"text": text}) + "\n" for text in BOOKS).encode()
        server.put("me/lines", {"README.md": b"# x", "data/train.jsonl": jsonl})
        yield server


@pytest.fixture(scope="module")
def ask(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    home = tmp_path_factory.mktemp("hub")
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_HUB_OFFLINE")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "ANYFORMER_CACHE": str(home / "ours"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", CHILD]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert child.stdin is not None
    assert child.stdout is not None
    stdin, stdout = child.stdin, child.stdout

    def put(kind: str, *arguments: Any) -> dict[str, Any]:
        stdin.write(json.dumps([kind, arguments]) + "\n")
        stdin.flush()
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer

    yield put
    stdin.close()
    child.wait(10)


def test_wikitext_by_its_short_name(ask: Ask) -> None:
    told = ask("loader", "wikitext", "wikitext-2-raw-v1")
    assert told["texts"] == [" wikitext-2-raw-v1 train \n", *LINES[2:], ""]
    default = ask("loader", "wikitext")
    assert default["texts"] == told["texts"]
    assert ["configuration", "wikitext-2-raw-v1"] in default["findings"]
    assert ["dataset", "Salesforce/wikitext"] in default["findings"]
    other = ask("corpus", "hf:Salesforce/wikitext:wikitext-103-v1:validation")
    assert other["texts"][0] == " wikitext-103-v1 validation \n"
    assert other["name"] == "Salesforce/wikitext"


def test_textbooks_and_their_column(ask: Ask, hub: HubServer) -> None:
    told = ask("corpus", "hf:nampdn-ai/tiny-textbooks")
    assert told["texts"] == BOOKS
    assert told["findings"] == [["text column", "textbook"]]
    assert ask("corpus", "hf:nampdn-ai/tiny-textbooks::test")["texts"] == BOOKS[:2]
    assert hub.count("/storage/", "GET") > 0  # large files lie at another address, as on the real hub


def test_a_dataset_that_moved_and_one_in_lines(ask: Ask) -> None:
    assert ask("loader", "me/moved")["texts"] == BOOKS
    assert ask("corpus", "hf:me/lines")["texts"] == BOOKS


REFUSED: list[tuple[str, str, tuple[str, ...]]] = [
    ("hf:no/such", "DataNotFound", ("there is no dataset 'no/such' on the hub, or it is private", "hf auth login")),
    ("hf:nosuch", "DataNotFound", ("no file or folder 'nosuch' here either", "most are OWNER/NAME")),
    ("hf:me/private", "DataNotFound", ("or it is private", "hf auth login")),
    ("hf:me/gated", "DataNotFound", ("lets in only those who were accepted", "/datasets/me/gated", "HF_TOKEN")),
    ("hf:wikitext:nope", "DataNotFound", ("no configuration 'nope'", "103-v1", "config_name='wikitext-2-raw-v1'")),
    ("hf:wikitext:wikitext-103", "DataNotFound", ("config_name='wikitext-103-raw-v1', or hf:wikitext:wikitext-103-r",)),
    (
        "hf:wikitext::dev",
        "DataNotFound",
        ("no split 'dev'", "it has: train, validation, test", "→ split='validation', or hf:wikitext::validation"),
    ),
    ("hf:me/nothing", "DataError", ("holds no data files",)),
    ("hf:me/norows::test", "DataError", ("the split 'test' of 'me/norows' is empty", "another split")),
    ("hf:me/script", "DataError", ("programs from the hub are not run", "parquet")),
    (
        "hf:daily_dialog",
        "DataError",
        ("are not run", "take the same dialogues as a table, hf:pixelsandpointers/"),
    ),
    ("hf:me/damaged", "DataError", ("its files cannot be read",)),
    ("hf:me/numbers", "DataError", ("me/numbers has no column with text", "columns: n")),
    ("hf:../../etc", "DataError", ("is no name of a dataset",)),
]


@pytest.mark.parametrize(("reference", "kind", "says"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refusals(ask: Ask, reference: str, kind: str, says: tuple[str, ...]) -> None:
    answer = ask("corpus", reference)
    assert answer["kind"] == kind
    for part in says:
        assert part in answer["error"]
    assert answer["seconds"] < 5


@pytest.mark.parametrize("split", [None, "", 7, ["train", "test"]])
def test_one_split_is_read_at_a_time(ask: Ask, hub: HubServer, split: Any) -> None:
    before = hub.count("/storage/", "GET")
    told = ask("loader", "wikitext", "wikitext-2-v1", split)["error"]
    assert f"split is {split!r}; one split of 'Salesforce/wikitext' is read at a time" in told
    assert "it has: train, validation, test" in told
    assert "→ split='train', or hf:wikitext:wikitext-2-v1" in told
    assert hub.count("/storage/", "GET") == before  # asked before anything is fetched


@pytest.mark.parametrize(
    ("asked", "names", "proposed"),
    [
        *((name, ["test", "train", "validation"], "validation") for name in ("dev", "val", "eval", "valid", "Dev")),
        ("dev[:10%]", ["test", "train", "validation"], "validation"),
        ("validation", ["test", "train", "dev"], "dev"),
        ("dev", ["test", "train"], "test"),
        ("tests", ["test", "train", "validation"], "test"),
        ("training", ["test", "train", "validation"], "train"),
        ("trian", ["test", "train", "validation"], "train"),
        ("", ["test", "validation"], "validation"),
        ("all", ["test", "train", "validation"], "train"),
        ("validation", ["test", "train", "validation_matched"], "validation_matched"),
        ("part-2", ["part-1", "part-3"], "part-3"),
    ],
)
def test_the_likeliest_split_is_proposed(asked: str, names: list[str], proposed: str) -> None:
    said = "Unknown split. Should be one of " + str(names)
    error = _in_words(HubReference("a/b", None, asked), "a/b", None, ValueError(said))
    assert error.fix.startswith(f"split='{proposed}'")


def test_a_name_with_its_prefix_is_the_name_without(ask: Ask) -> None:
    assert ask("loader", "hf:wikitext")["texts"] == ask("loader", "wikitext")["texts"]
    other = ask("loader", "hf:wikitext:wikitext-103-v1:validation")
    assert other["texts"][0] == " wikitext-103-v1 validation \n"
    assert "two configurations are named" in ask("loader", "hf:wikitext:wikitext-103-v1", "wikitext-2-v1")["error"]
    assert "two splits are named" in ask("loader", "hf:wikitext::test", None, "validation")["error"]
    assert "config_name is 3 (int)" in ask("loader", "wikitext", 3)["error"]
    assert "'' is no name of a dataset" in ask("loader", "hf:")["error"]


def storage(hub: HubServer, name: str, texts: list[str]) -> str:
    """Publish a dataset; the address of its file."""
    hub.put(name, {"README.md": b"# x", "train.parquet": parquet({"text": texts})})
    return "/storage/" + hashlib.sha256(hub.repositories[name].files["train.parquet"]).hexdigest()


FAULTS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("busy", {"status": 429}, ("too many requests (429)", "does not say for how long", "HF_TOKEN")),
    ("busylong", {"status": 429, "headers": {"Retry-After": "300"}}, ("it asks to wait 300 s", "HF_TOKEN")),
    ("limited", {"status": 429, "headers": {"RateLimit": '"api";r=0;t=57'}}, ("it asks to wait 57 s",)),
    ("trouble", {"status": 503, "headers": {"Retry-After": "60"}}, ("the hub is in trouble (503)", "wait 60 s")),
    ("cut", {"cut": True}, ("the transfer was cut off", "run again: it goes on")),
]


@pytest.mark.parametrize(("name", "fault", "says"), FAULTS, ids=[row[0] for row in FAULTS])
def test_a_hub_in_trouble(ask: Ask, hub: HubServer, name: str, fault: dict[str, Any], says: tuple[str, ...]) -> None:
    texts = [f"{name} {n} some words" for n in range(200)]
    hub.faults.append(Fault(storage(hub, f"me/{name}", texts), **fault))
    answer = ask("corpus", f"hf:me/{name}")
    for part in (f"the dataset 'me/{name}' cannot be had", *says):
        assert part in answer["error"]
    assert answer["seconds"] < 12  # a cut transfer is tried again for 5 s
    hub.faults.clear()
    assert ask("corpus", f"hf:me/{name}")["texts"] == texts  # what was left behind spoils nothing


@pytest.mark.parametrize("room", [60, 3000])  # the fetched files do not fit, or what is made of them
def test_a_full_disk(ask: Ask, hub: HubServer, room: int) -> None:
    files = {"README.md": b"# x", "train.parquet": parquet({"text": ["some text " * 9] * 5000})}  # 450 kB, packed
    hub.put(f"me/full{room}", files)
    answer = ask("full", f"me/full{room}", None, "train", room)
    assert "the disk is full" in answer["error"]
    assert "HF_HOME" in answer["error"]
    assert ask("loader", f"me/full{room}")["texts"] == ["some text " * 9] * 5000  # once there is room


def test_trouble_that_passes(ask: Ask, hub: HubServer) -> None:
    texts = ["some words that are read"] * 200
    where = storage(hub, "me/passing", texts)
    hub.faults += [Fault(where, cut=True, times=1), Fault(where, status=429, headers={"Retry-After": "0"}, times=1)]
    assert ask("corpus", "hf:me/passing")["texts"] == texts
    assert all(fault.times == 0 for fault in hub.faults)
    hub.faults.clear()


def test_a_hub_that_is_switched_off() -> None:
    with pytest.raises(DataNotFound, match=r"switched off here \(HF_HUB_OFFLINE\), and no copy is in the cache"):
        hub_dataset(HubReference("me/it"))


def test_a_hub_that_has_gone_away_leaves_the_cache(ask: Ask, hub: HubServer) -> None:
    storage(hub, "me/kept", ["some words that stay"])
    assert ask("corpus", "hf:me/kept")["texts"] == ["some words that stay"]
    hub.__exit__(None, None, None)
    try:
        again, other = ask("corpus", "hf:me/kept"), ask("corpus", "hf:me/lost")
    finally:
        hub.__enter__()
    assert again["texts"] == ["some words that stay"]
    assert ["dataset", "the copy in the cache"] in again["findings"]
    assert "cannot be reached" in other["error"]
    assert again["seconds"] < 3
    assert other["seconds"] < 3
    assert ask("corpus", "hf:me/moved")["texts"] == BOOKS  # and it is asked again when it is back


KEPT = "the copy in the cache"


def test_a_dataset_that_is_refused_now_leaves_the_cache_aloud(ask: Ask, hub: HubServer) -> None:
    hub.put("me/secret", textbooks_files(BOOKS), token="secret")
    for token in ("", "wrong"):
        assert "or it is private" in ask("corpus", "hf:me/secret", token)["error"]  # nothing is in the cache yet
    for _ in range(2):
        told = ask("corpus", "hf:me/secret", "secret")
        assert told["texts"] == BOOKS
        assert told["reasons"] == {}
    for token, status in (("wrong", 404), ("", 401)):
        told = ask("corpus", "hf:me/secret", token)
        assert told["texts"] == BOOKS
        assert f"{hub.url} refuses it ({status})" in told["reasons"][KEPT]
        assert "hf auth login" in told["reasons"][KEPT]
    assert ask("corpus", "hf:me/secret", "secret")["reasons"] == {}  # allowed again
    hub.put("me/secret", textbooks_files(BOOKS), gated=True)
    assert "refuses it (403)" in ask("corpus", "hf:me/secret", "secret")["reasons"][KEPT]
    del hub.repositories["me/secret"]
    told = ask("corpus", "hf:me/secret", "secret")
    assert told["texts"] == BOOKS
    assert "refuses it (404): private, gated or gone" in told["reasons"][KEPT]


def test_a_busy_hub_leaves_the_cache_aloud(ask: Ask, hub: HubServer) -> None:
    texts = ["some words that stay"] * 9
    storage(hub, "me/stays", texts)
    assert ask("corpus", "hf:me/stays")["reasons"] == {}
    hub.faults.append(Fault("datasets/me/stays/", 503, {"Retry-After": "60"}))
    told = ask("corpus", "hf:me/stays")
    hub.faults.clear()
    assert told["texts"] == texts
    assert "gives no answer (503)" in told["reasons"][KEPT]


def test_real_data_served_by_the_hub(ask: Ask, hub: HubServer, real_data: Path) -> None:
    lines = (real_data / "wikitext2" / "valid.txt").read_text("utf-8").splitlines(keepends=True)
    hub.put("me/real-wikitext", wikitext_files(lines))
    texts = ask("loader", "me/real-wikitext", "wikitext-103-raw-v1", "test")["texts"]
    assert texts[1:-1] == lines


def test_references() -> None:
    assert parse_reference("data.txt") is None
    for text, reference in (
        ("hf:wikitext", HubReference("wikitext")),
        ("hf:a/b:c", HubReference("a/b", "c")),
        ("hf:a/b::test", HubReference("a/b", None, "test")),
        ("hf:a/b:c:train[:10%]", HubReference("a/b", "c", "train[:10%]")),
    ):
        assert parse_reference(text) == reference
        assert str(reference) == text
    for bad in ("hf:", "hf:a/b/c", "hf:/a", "hf:a b"):
        with pytest.raises(DataError, match="is no name of a dataset"):
            parse_reference(bad)


def test_names_that_may_be_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert is_hub_name("wikitext")
    assert is_hub_name("nampdn-ai/tiny-textbooks")
    for path in ("corpus.txt", "data/corpus", "a/b/c", "/tmp/a", "x.jsonl.gz", "To be, or not to be", "*.txt"):
        assert not is_hub_name(path)


def test_train_model_takes_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    from anyformer.training.prepare import resolve_dataset

    monkeypatch.chdir(tmp_path)
    assert resolve_dataset("wikitext", None, None) == ("hf:wikitext", None)
    for name in ("me/it", "hf:me/it"):
        assert resolve_dataset(name, None, "config") == ("hf:me/it:config", None)
    assert resolve_dataset("no_such_file.txt", None, None) == ("no_such_file.txt", None)
    (tmp_path / "wikitext").mkdir()
    assert resolve_dataset("wikitext", None, None) == ("wikitext", None)
    asked = []

    def load_dataset(name: str, config: str | None, *, split: str) -> Any:
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({"text": ["a text"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub_dataset(HubReference("wikitext"))
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "train")]


def test_a_bare_name_that_is_nowhere_points_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anyformer.data import open_corpus

    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataNotFound, match="for the dataset of that name on the hub: hf:wikitext"):
        open_corpus("wikitext")

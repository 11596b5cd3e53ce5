"""The run's folder: names, manifest, sources, errors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from anyformer.core.errors import SourceError, TrainingError
from anyformer.core.files import write_atomically
from anyformer.core.names import list_runs
from anyformer.core.settings import TrainSettings
from anyformer.runs import directory, environment, files
from anyformer.runs.directory import RunDirectory


def test_a_name_is_never_used_twice(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: RunDirectory.create(tmp_path / "deep" / "runs", "novel"), range(4)))
    assert sorted(run.path.name for run in runs) == ["novel", "novel-2", "novel-3", "novel-4"]
    assert all(run.manifest["name"] == run.path.name for run in runs)


def test_the_first_manifest(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "a")
    stored = json.loads((tmp_path / "a" / "run.json").read_text())
    assert stored == run.manifest == RunDirectory.open(tmp_path / "a").manifest
    assert stored["format"] == 1
    assert stored["state"] == "running"
    assert stored["finished"] is stored["results"] is stored["error"] is None
    assert set(stored["versions"]) == {
        *("anyformer", "python", "torch", "pytorch-lightning", "transformers", "tokenizers", "numpy")
    }
    assert set(stored["machine"]) == {"platform", "processor", "cores", "threads", "memory_gb", "device"}
    assert run.checkpoints.is_dir()


def test_no_environment_variable_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_thisisasecret")
    RunDirectory.create(tmp_path, "a")
    assert "thisisasecret" not in (tmp_path / "a" / "run.json").read_text()


def test_update_merges_and_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.create(tmp_path, "a")
    run.update(state="finished", seconds=1.5)
    before = (run.path / "run.json").read_bytes()
    assert json.loads(before)["state"] == "finished"
    assert json.loads(before)["name"] == "a"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(TrainingError, match="is full") as caught:
        run.update(state="failed")
    assert "--output_dir" in str(caught.value)
    assert (run.path / "run.json").read_bytes() == before
    assert run.manifest["state"] == "finished"
    assert not list(run.path.glob(".*"))


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match=str(tmp_path / "file")) as caught:
        RunDirectory.create(tmp_path / "file", "a")
    assert "--output_dir" in str(caught.value)


def test_a_disk_that_fills_while_creating_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(directory, "write_atomically", full)
    with pytest.raises(TrainingError, match="is full"):
        RunDirectory.create(tmp_path, "a")
    assert list(tmp_path.iterdir()) == []


def test_open_names_the_runs_that_exist(tmp_path: Path) -> None:
    for name in ("one", "two"):
        RunDirectory.create(tmp_path, name)
    with pytest.raises(SourceError, match="is not a run") as caught:
        RunDirectory.open(tmp_path / "three")
    assert "one" in str(caught.value)
    assert "two" in str(caught.value)
    with pytest.raises(SourceError) as caught:
        RunDirectory.open(tmp_path)
    assert "runs in" in str(caught.value)
    assert sorted(list_runs(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', "\xff"])
def test_open_a_broken_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(SourceError, match=r"run\.json"):
        RunDirectory.open(tmp_path)


def test_settings_keep_the_fields_order_and_come_back(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "a")
    settings = TrainSettings(data="Bücher.txt", learning_rate=3e-4)
    run.write_settings(settings.to_dict())
    loaded = yaml.safe_load((run.path / "settings.yaml").read_text(encoding="utf-8"))
    assert list(loaded) == list(settings.to_dict())
    assert TrainSettings(**loaded) == settings


def loaded_model(sources: dict[str, Path], config: dict[str, Any] | None) -> Any:
    return SimpleNamespace(sources=sources, provenance=SimpleNamespace(config=config))


def test_sources_are_copied_with_their_relative_names(tmp_path: Path) -> None:
    original = tmp_path / "mine" / "model.py"
    (original.parent / "parts").mkdir(parents=True)
    original.write_text("x = 1\n")
    (original.parent / "parts" / "block.py").write_text("y = 2\n")
    run = RunDirectory.create(tmp_path / "runs", "a")
    sources = {"model.py": original, "parts/block.py": original.parent / "parts" / "block.py"}
    run.store_sources(loaded_model(sources, {"vocab_size": 11}))
    original.write_text("x = 3\n")
    assert (run.path / "model" / "model.py").read_text() == "x = 1\n"
    assert (run.path / "model" / "parts" / "block.py").read_text() == "y = 2\n"
    assert json.loads((run.path / "model" / "config.json").read_text()) == {"vocab_size": 11}


def test_a_config_file_of_the_source_is_kept_as_it_is(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"nodes": []}')
    run = RunDirectory.create(tmp_path / "runs", "a")
    run.store_sources(loaded_model({"config.json": config}, {"vocab_size": 11}))
    assert (run.path / "model" / "config.json").read_text() == '{"nodes": []}'


def test_a_source_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("")
    run = RunDirectory.create(tmp_path / "runs", "a")
    with pytest.raises(SourceError, match="outside"):
        run.store_sources(loaded_model({"../../evil.py": tmp_path / "model.py"}, None))


def test_samples_are_one_line_each(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "a")
    run.append_sample(0, "def ", "two\nlines")
    run.append_sample(10, "def ", "more <b>")
    lines = (run.path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["two\nlines", "more <b>"]


def test_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "x"
    write_atomically(file, b"long content")
    write_atomically(file, b"short")
    assert file.read_bytes() == b"short"
    assert files.sha256(file) == hashlib.sha256(b"short").hexdigest()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_processor_where_proc_is_absent(tmp_path: Path) -> None:
    assert environment._processor(tmp_path / "none")
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Fast  CPU @ 3 GHz\n")
    assert environment._processor(tmp_path / "cpuinfo") == "Fast CPU @ 3 GHz"


def test_samples_of_later_steps_are_dropped_whatever_the_lines_hold(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "a")
    odd = "one\u2028two\u2029three\u0085four\x0bfive"
    for step in (0, 10, 20):
        run.append_sample(step, odd, odd)
    file = run.path / "samples.jsonl"
    whole = file.read_bytes().splitlines(keepends=True)
    with file.open("ab") as stream:  # killed while it wrote, in the middle of a character
        stream.write('{"step": 10, "prompt": "é'.encode()[:-1])
    run.drop_samples_beyond(10)
    assert file.read_bytes() == b"".join(whole[:2])
    run.append_sample(20, "p", "t")
    assert [json.loads(line)["step"] for line in file.read_text("utf-8").rstrip("\n").split("\n")] == [0, 10, 20]


@pytest.mark.parametrize("broken", ["{", "[]", "{}", '{"step": null}', "17"])
def test_samples_of_one_step_are_dropped_and_broken_lines_with_them(tmp_path: Path, broken: str) -> None:
    run = RunDirectory.create(tmp_path, "a")
    run.drop_samples_at(3)  # there is no file yet
    for step in (0, 1, 1, 2):
        run.append_sample(step, "p", f"at {step}")
    file = run.path / "samples.jsonl"
    file.write_text(f"{broken}\n{file.read_text()}")
    run.drop_samples_at(1)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [0, 2]


def test_two_processes_cannot_train_one_run(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "a")
    code = f"""
import sys
from anyformer.runs.directory import RunDirectory
with RunDirectory.open({str(run.path)!r}).locked():
    print("held", flush=True)
    sys.stdin.readline()
"""
    arguments = [sys.executable, "-c", code]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(TrainingError) as caught, run.locked():
            pytest.fail("both hold it")
        assert caught.value.what == f"the run {run.path} is being trained by another process (pid {other.pid})"
        other.kill()  # no chance to clean up
    with run.locked():
        assert (run.path / ".lock").read_text() == str(os.getpid())
        refused = subprocess.run(arguments, capture_output=True, text=True)
        assert f"(pid {os.getpid()})" in refused.stderr
        assert refused.stdout == ""
    with pytest.raises(KeyError), run.locked():
        raise KeyError("an error of the training itself passes through")
    with run.locked():
        pass


def test_without_locks_a_run_is_trained_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.create(tmp_path, "a")

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(directory.fcntl, "flock", no_locks)
        with run.locked():
            pass
    monkeypatch.setattr(directory, "fcntl", None)
    with run.locked(), run.locked():
        pass

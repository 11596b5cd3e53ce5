"""``anyformer runs reproduce``: a run trained anew from its manifest is the run it was, or it is said why not."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer
from anyformer import cli
from anyformer.core.errors import DataError, Interrupted, SettingsError, SourceError, TrainingError, TrustError
from anyformer.core.view import QuietView
from anyformer.training import coordinator
from anyformer.training.coordinator import TrainResult
from anyformer.training.stopping import StopOnSignal
from tests.training.read_runs import untimed_rows
from tests.training.small_models import TINY_FILE, Small, small_text

Fit = Callable[..., TrainResult]
Capture = pytest.CaptureFixture[str]
SETTINGS: dict[str, Any] = {
    "max_length": 16,
    "batch_size": 8,
    "max_steps": 10,
    "precision": "32",
    "eval_every": 4,
    "log_every": 1,
}


def trained(folder: Path, **settings: Any) -> Path:
    (folder / "tiny.py").write_text(TINY_FILE)
    (folder / "text.txt").write_text(small_text())
    given = {**SETTINGS, "name": "a", "output_dir": str(folder / "runs"), **settings}
    result = anyformer.train(folder / "tiny.py", data=folder / "text.txt", view=QuietView(), **given)
    return result.run_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a text and a run of them, for copying."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_CACHE", str(folder / "cache"))
        trained(folder)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run in the current folder, with the model and text beside it as the run names them."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for name in ("tiny.py", "text.txt"):
        shutil.copyfile(made / name, tmp_path / name)
    rewrite(Path("runs/a"), settings={"data": str(tmp_path / "text.txt")})
    return Path("runs/a")


def rewrite(run: Path, **parts: dict[str, Any]) -> None:
    """Change run.json: each part is merged into what is there."""
    record = json.loads((run / "run.json").read_text())
    for name, value in parts.items():
        record[name] = {**record[name], **value} if isinstance(value, dict) else value
    (run / "run.json").write_text(json.dumps(record))


def test_a_run_is_the_same_again(run: Path, capsys: Capture) -> None:
    assert cli.main(["runs", "reproduce", "a", "--json", "--keep"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["reproduced"], told["exact"], told["steps"]) == (True, True, 10)
    assert told["replay"] == "runs/a-reproduced"
    again = Path(told["replay"])
    assert untimed_rows(again) == untimed_rows(run)  # what the command says, read by hand
    weights = [load_file(one / "checkpoints" / "step-00000010" / "model.safetensors") for one in (run, again)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    record = json.loads((again / "run.json").read_text())
    assert record["reproduces"]["run"] == "runs/a"
    assert record["model"] == json.loads((run / "run.json").read_text())["model"]
    assert "10 steps, loss curve and weights bit for bit" in record["findings"][-1]["measured"]


def test_the_first_steps_of_a_run(run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    begin = StopOnSignal.on_train_batch_end
    monkeypatch.setattr(
        StopOnSignal,
        "on_train_batch_end",
        lambda self, *args: (seen.append(args[0].global_step), begin(self, *args))[1],
    )
    torch.set_num_threads(2)  # as the run had one, so has the replay
    try:
        assert cli.main(["runs", "reproduce", "runs/a", "--steps", "5"]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    out = capsys.readouterr().out
    assert "conditions: the same versions, processor and threads" in out
    assert "5 rows equal bit for bit" in out
    assert "weights: of step 4 equal" in out  # the newest that both keep
    assert seen == [1, 2, 3, 4, 5]
    assert os.listdir("runs") == ["a"]


def test_another_curve_is_told_and_the_replay_kept(run: Path, capsys: Capture) -> None:
    table = run / "metrics" / "metrics.csv"
    rows = table.read_text().splitlines()
    place = rows[0].split(",").index("train_loss")
    cells = rows[3].split(",")
    cells[place] = repr(float(cells[place]) * (1 + 1e-12))
    rows[3] = ",".join(cells)
    table.write_text("\n".join(rows) + "\n")
    assert cli.main(["runs", "reproduce", "a", "--steps", "4"]) == 1
    out = capsys.readouterr().out
    now = untimed_rows(Path("runs/a-reproduced"))[2]["train_loss"]
    assert f"step 3: train_loss {now} instead of {cells[place]}" in " ".join(out.split())
    assert "the replay: runs/a-reproduced" in out
    rewrite(run, versions={"torch": "2.9.0"})  # then the last digits count for nothing
    assert cli.main(["runs", "reproduce", "a", "--steps", "4", "--json"]) == 0
    findings = {one["name"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["conditions"]["measured"] == f"torch: {metadata.version('torch')} instead of 2.9.0"
    assert "within 2%" in findings["conditions"]["reason"]
    assert "losses at most" in findings["loss curve"]["measured"]


@pytest.mark.soak
def test_a_run_that_was_left_twice_is_replayed_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    stops = [3, 7]

    def begin(self: StopOnSignal, trainer: Any, *args: Any) -> None:
        if stops and trainer.global_step == stops[0]:
            stops.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StopOnSignal, "on_train_batch_start", begin, raising=False)
    with pytest.raises(Interrupted):
        trained(tmp_path, schedule="constant")
    run = tmp_path / "runs" / "a"
    with pytest.raises(Interrupted):
        anyformer.train(resume=str(run), backup=str(tmp_path / "copy"), num_workers=0, view=QuietView())
    done = anyformer.reproduce(run)  # as far as it came
    assert (done.reproduced, done.exact, done.steps) == (True, True, 8)
    rewrite(
        run, history=[*json.loads((run / "run.json").read_text())["history"], {"step": 4, "elsewhere": ["torch: 3"]}]
    )
    assert not anyformer.reproduce(run, steps=2).exact
    anyformer.train(resume=str(run), learning_rate=0.5, view=QuietView())
    with pytest.raises(SettingsError, match=r"on the way: learning_rate: 0\.5 instead of derived"):
        anyformer.reproduce(run)


def test_weights_that_it_began_with(tmp_path: Path) -> None:
    first = tmp_path / "first.safetensors"
    torch.manual_seed(3)
    state = {"e.weight": torch.randn(40, 16), "h.weight": torch.randn(40, 16), "h.bias": torch.randn(40)}
    save_file(state, first)
    run = trained(tmp_path, weights=str(first), max_steps=3)
    assert anyformer.reproduce(run).reproduced
    save_file({**state, "h.bias": torch.zeros(40)}, first)
    with pytest.raises(SourceError, match=r"weights that the run began with have changed: .*first\.safetensors"):
        anyformer.reproduce(run)
    first.unlink()
    with pytest.raises(SourceError, match=r"are gone: .*first\.safetensors"):
        anyformer.reproduce(run)


@pytest.mark.soak
def test_objects_of_python_are_asked_for(fit: Fit, corpus: Path) -> None:
    texts = [corpus.read_text(), corpus.read_text()[::-1]]
    run = fit(dataset=texts, data="<list>", max_steps=2).run_path
    with pytest.raises(DataError, match=r"its data as a Python object \(list\)"):
        anyformer.reproduce(run)
    with pytest.raises(SourceError, match="its model as a Python object") as told:
        anyformer.reproduce(run, data=texts)
    assert "model=…" in told.value.fix
    torch.manual_seed(5)  # as fit does
    assert anyformer.reproduce(run, model=Small(), data=texts).reproduced


def test_what_cannot_be_replayed_is_said(run: Path, capsys: Capture) -> None:
    def refused(*flags: str, name: str = "a", code: int = 2) -> str:
        assert cli.main(["runs", "reproduce", name, *flags, "--quiet"]) == code
        return capsys.readouterr().err

    assert "b is not a run" in refused(name="b")
    assert "steps is 11, but the run runs/a made 10" in refused("--steps", "11")
    assert "steps is 0" in refused("--steps", "0")
    assert cli.main(["runs", "reproduce"]) == 2
    assert "anyformer runs reproduce NAME" in capsys.readouterr().err
    source = run / "model" / "tiny.py"
    source.write_text(TINY_FILE + "# edited\n")
    assert "model/tiny.py was edited since the run began" in refused()
    source.unlink()
    assert "model/tiny.py is missing" in refused()
    source.write_text(TINY_FILE)
    Path("tiny.py").unlink()  # the run has its own copy
    text = Path("text.txt").read_text()
    Path("text.txt").write_text(text + "more")
    assert "text.txt has changed since the run runs/a began" in refused()
    Path("text.txt").unlink()
    assert "the data of the run runs/a is not there" in refused()
    Path("text.txt").write_text(text)
    rewrite(run, state="running")
    with (run / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a process that trains it holds it
        assert "is still being trained" in refused(code=1)
    record = json.loads((run / "run.json").read_text())
    rewrite(run, data={"fingerprint": None})
    assert "an object of which nothing is recorded" in refused()
    (run / "run.json").write_text(json.dumps({**record, "settings": {**record["settings"], "unknown": 1}}))
    assert "settings of another version" in refused()
    (run / "run.json").write_text(json.dumps({**record, "effective": None}))
    assert "ended before its first step" in refused()
    (run / "run.json").write_text(json.dumps({**record, "results": None}))
    shutil.rmtree(run / "metrics")
    shutil.rmtree(run / "checkpoints")
    assert "left no row of metrics and no checkpoint" in refused()
    assert os.listdir("runs") == ["a"]


def test_code_of_a_network_is_asked_about(run: Path) -> None:
    files = json.loads((run / "run.json").read_text())["model"]["files"]
    rewrite(run, model={"kind": "gist", "location": "gist:0123456789abcdef:tiny.py", "owner": "x", "files": files})
    with pytest.raises(TrustError, match=r"gist:0123456789abcdef:tiny\.py by x was not run"):
        anyformer.reproduce(run, steps=1)
    with pytest.raises(TrustError):
        anyformer.reproduce(run, steps=1, approve=lambda request: False)
    assert anyformer.reproduce(run, steps=1, trust=True).reproduced
    assert anyformer.reproduce(run, steps=1).reproduced  # remembered


def test_a_replay_that_ends_otherwise(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def judge(*args: Any) -> dict[str, Any]:
            raise TrainingError("the loss is nan at step 3")

        patch.setattr(coordinator, "judge", judge)
        done = anyformer.reproduce(run, steps=3)
        assert not done.reproduced
        assert [one.measured for one in done.findings if one.name == "replay"] == ["the loss is nan at step 3"]
        shutil.rmtree("runs/a-reproduced")
    monkeypatch.setattr(
        StopOnSignal, "on_train_batch_start", lambda *args: os.kill(os.getpid(), signal.SIGINT), raising=False
    )
    with pytest.raises(Interrupted, match="nothing is compared"):
        anyformer.reproduce(run, steps=3)
    assert os.listdir("runs") == ["a"]

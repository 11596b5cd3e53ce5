"""transformers models: folders, a hub (played by a server on loopback), classes, configurations; never their code."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from anyformer.core.errors import ConstructError, SourceError
from anyformer.models.source import load_model
from anyformer.runs.directory import RunDirectory
from anyformer.runs.rebuild import stored_model

transformers = pytest.importorskip("transformers")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = {"vocab_size": 40, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A tiny GPT-2 with weights, as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    torch.manual_seed(3)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL, bos_token_id=1, eos_token_id=2)).save_pretrained(
        folder
    )
    return folder


class Asked(list[str]):
    """Paths that were asked for, and what the server does wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: dict[str, list] = {"states": [], "headers": [], "absent": []}
        """HTTP states of the next answers; headers that it leaves out; files that it has not."""


@pytest.fixture
def hub(saved, tmp_path, monkeypatch) -> Iterator[Asked]:
    """A server that answers as the hub's resolve endpoints do for me/tiny; yields the paths asked for."""
    asked = Asked()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            asked.append(self.path)
            parts = self.path.split("?")[0].strip("/").split("/")
            file = saved / parts[-1]
            known = parts[:3] == ["me", "tiny", "resolve"]
            if asked.faults["states"] and (state := asked.faults["states"].pop(0)) != 200:
                self.send_response(state)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if not known or not file.is_file() or file.name in asked.faults["absent"]:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = file.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            if "X-Repo-Commit" not in asked.faults["headers"]:
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the hub is this machine's loopback
    yield asked
    server.shutdown()
    server.server_close()


def findings(loaded) -> dict[str, str]:
    return {f.name: f.measured for f in loaded.findings}


def test_a_folder_with_weights(saved):
    for spec in (saved, f"hf:{saved}"):
        loaded = load_model(spec)
        assert loaded.provenance.kind == "hf"
        assert loaded.provenance.class_name == "GPT2LMHeadModel"
        assert list(loaded.provenance.files) == ["config.json"]
        assert findings(loaded)["weights"] == "model.safetensors"
        reference = transformers.GPT2LMHeadModel.from_pretrained(saved)
        ids = torch.tensor([[1, 5, 7]])
        assert torch.equal(loaded.module.eval()(ids).logits, reference(ids).logits)


def test_its_own_weights_are_no_fresh_start(saved, tmp_path):
    (own,) = [f for f in load_model(saved).findings if f.name == "initialisation"]
    assert (own.verdict, own.reason) == ("n/a", "not applicable: weights were given")
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    assert "initialisation" not in findings(load_model(tmp_path))
    loaded = load_model(tmp_path, weights=saved / "model.safetensors")
    random, given = [f for f in loaded.findings if f.name == "weights"]
    assert (random.verdict, random.measured) == ("n/a", "random")
    assert (given.verdict, given.measured) == ("note", "model.safetensors")
    ids = torch.tensor([[1, 5, 7]])
    assert torch.equal(loaded.module.eval()(ids).logits, load_model(saved).module.eval()(ids).logits)


def test_a_stated_call_is_read_beside_a_local_folder(saved, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    (tmp_path / "anyformer.yaml").write_text("call:\n  mask: none\n")
    for spec in (tmp_path, f"hf:{tmp_path}"):
        loaded = load_model(spec)
        assert loaded.overrides == {"mask": "none"}
        assert list(loaded.provenance.files) == ["config.json", "anyformer.yaml"]


def test_a_folder_with_a_configuration_only(saved, tmp_path):
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    one, two, other = (load_model(tmp_path, seed=s).module.transformer.wte.weight for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    loaded = load_model(tmp_path, config={"n_layer": 3})
    assert findings(loaded)["weights"] == "random"
    assert len(loaded.module.transformer.h) == 3
    assert loaded.provenance.config == {"n_layer": 3}


def test_pickled_weights_cannot_run_code(saved, tmp_path):
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    model = transformers.GPT2LMHeadModel.from_pretrained(saved)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = load_model(tmp_path)
    assert torch.equal(loaded.module.transformer.wte.weight, model.transformer.wte.weight)

    class Harm:
        def __reduce__(self) -> tuple:
            return (Path.write_text, (tmp_path / "harmed", "x"))

    torch.save({"a": Harm()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConstructError, match="do not fit"):
        load_model(tmp_path)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}, "BertForMaskedLM"),
        ({"model_type": "gpt2", "n_embd": 8, "n_head": 2}, "GPT2LMHeadModel"),
        ({"model_type": "t5", "d_model": 8, "d_ff": 8, "d_kv": 4, "num_heads": 2}, "T5ForConditionalGeneration"),
        (
            {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
            | {"architectures": ["BertForSequenceClassification"]},
            "BertForSequenceClassification",
        ),
    ],
)
def test_the_class_for_each_family(tmp_path, config, name):
    layers = {"num_hidden_layers": 1, "num_layers": 1, "n_layer": 1, "vocab_size": 30}
    (tmp_path / "config.json").write_text(json.dumps({**layers, **config, "pad_token_id": 0}))
    assert load_model(tmp_path).provenance.class_name == name


def test_code_in_the_repository_is_not_run(saved, tmp_path):
    values = json.loads((saved / "config.json").read_text())
    code = {"AutoModelForCausalLM": "modeling_own.Own"}
    (tmp_path / "modeling_own.py").write_text("raise SystemExit('ran')")
    (tmp_path / "config.json").write_text(json.dumps({**values, "auto_map": code}))
    assert "modeling_own.py not run" in findings(load_model(tmp_path))["code"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": code}))
    with pytest.raises(ConstructError, match=r"modeling_own\.Own(?s:.*)never run"):
        load_model(tmp_path)


def test_the_hub(hub, saved):
    loaded = load_model("hf:me/tiny")
    assert loaded.provenance.location == "hf:me/tiny"
    assert "/me/tiny/resolve/main/model.safetensors" in hub
    reference = transformers.GPT2LMHeadModel.from_pretrained(saved)
    assert torch.equal(loaded.module.lm_head.weight, reference.lm_head.weight)
    assert loaded.provenance.files["config.json"] == hashlib.sha256((saved / "config.json").read_bytes()).hexdigest()


def test_the_hub_has_no_such_model(hub):
    with pytest.raises(SourceError, match="the hub has no model 'me/none'"):
        load_model("hf:me/none")
    with pytest.raises(SourceError, match="the hub has no model 'a/b/c'"):
        load_model("hf:a/b/c")


# ---------------------------------------------------------------- where the hub does not answer

DEAD = "http://127.0.0.1:9"  # the port for discarding: nothing listens


@pytest.fixture
def quiet(caplog, monkeypatch) -> Iterator[None]:
    """Fails where the library wrote a warning of its own."""
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    yield
    told = [r.getMessage() for r in caplog.get_records("call") if r.levelno >= logging.WARNING]
    assert told == []


@pytest.mark.parametrize("revision", ["", "@v2", f"@{COMMIT}"])
def test_no_hub_and_nothing_in_the_cache_is_one_message_at_once(hub, quiet, monkeypatch, capfd, revision):
    monkeypatch.setenv("HF_ENDPOINT", DEAD)
    start = time.monotonic()
    with pytest.raises(SourceError) as caught:
        load_model(f"hf:me/tiny{revision}")
    assert time.monotonic() - start < 3.0
    text = str(caught.value)
    assert text.startswith("hf:me/tiny cannot be fetched: the hub does not answer (ConnectError")
    assert DEAD in text
    assert "config.json is not in the cache on this machine" in text
    assert "check the network" in text
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("away", ["no answer", "offline", "no hub"])
def test_what_is_in_the_cache_is_used_and_that_is_said(hub, quiet, monkeypatch, saved, away):
    load_model("hf:me/tiny")
    before = len(hub)
    if away == "no answer":
        monkeypatch.setenv("HF_ENDPOINT", DEAD)
    elif away == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        hub.faults["headers"] = ["X-Repo-Commit"]
    start = time.monotonic()
    loaded = load_model("hf:me/tiny")
    assert time.monotonic() - start < 3.0
    (finding,) = [f for f in loaded.findings if f.name == "hub"]
    assert (finding.verdict, finding.measured) == ("warn", "me/tiny from the cache")
    said = {"no answer": "ConnectError", "offline": "HF_HUB_OFFLINE is set", "no hub": "login page"}
    assert said[away] in finding.reason
    reference = transformers.GPT2LMHeadModel.from_pretrained(saved)
    assert torch.equal(loaded.module.lm_head.weight, reference.lm_head.weight)
    assert len(hub) == before + (away == "no hub")


def test_a_commit_in_the_cache_is_not_asked_for_again(hub, quiet):
    assert "hub" not in findings(load_model(f"hf:me/tiny@{COMMIT}"))
    before = len(hub)
    loaded = load_model(f"hf:me/tiny@{COMMIT}")
    assert len(hub) == before
    assert [f.verdict for f in loaded.findings if f.name == "hub"] == ["note"]


def test_a_server_error_is_tried_again_and_then_told(hub, quiet, monkeypatch):
    monkeypatch.setattr("anyformer.models.network.hub.time.sleep", lambda seconds: None)
    hub.faults["states"] = [503, 429]
    assert "hub" not in findings(load_model("hf:me/tiny"))
    hub.faults["states"] = [503] * 3
    (finding,) = [f for f in load_model("hf:me/tiny").findings if f.name == "hub"]
    assert "the hub answers 503" in finding.reason
    hub.faults["states"] = [503] * 3
    with pytest.raises(SourceError, match="cannot be fetched: the hub answers 503"):
        load_model("hf:me/other")


def test_a_hub_that_goes_down_midway_is_told_without_the_librarys_warnings(hub, quiet, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waits.append)
    hub.faults["states"] = [200] + [503] * 20
    with pytest.raises(SourceError, match="hf:me/tiny cannot be fetched: the hub answers 503"):
        load_model("hf:me/tiny")
    assert waits, "the library's own retries"


def test_weights_that_are_not_in_the_cache_are_not_replaced_by_random_ones(hub, quiet, monkeypatch, tmp_path):
    load_model("hf:me/tiny")
    (snapshot,) = (tmp_path / "cache").rglob("model.safetensors")
    snapshot.unlink()
    monkeypatch.setenv("HF_ENDPOINT", DEAD)
    with pytest.raises(SourceError, match=r"(?s)cannot be fetched.*model\.safetensors is not in the cache"):
        load_model("hf:me/tiny")


def test_the_cache_knows_that_there_are_no_weights(hub, quiet, monkeypatch):
    hub.faults["absent"] = ["model.safetensors"]
    assert findings(load_model("hf:me/tiny"))["weights"] == "random"
    monkeypatch.setenv("HF_ENDPOINT", DEAD)
    said = findings(load_model("hf:me/tiny"))
    assert (said["weights"], said["hub"]) == ("random", "me/tiny from the cache")


def test_a_class_by_its_import_path_is_small():
    loaded = load_model("transformers:GPT2LMHeadModel", fallback={"vocab_size": 50})
    assert sum(p.numel() for p in loaded.module.parameters()) < 2_000_000
    assert loaded.module.config.vocab_size == 50
    assert loaded.module.config.eos_token_id < 50
    assert "n_embd=128" in findings(loaded)["sizes"]
    again = load_model("transformers:GPT2LMHeadModel", config=loaded.provenance.config)
    assert again.module.config.to_dict() == loaded.module.config.to_dict()
    assert load_model("transformers:BertConfig", config={"hidden_size": 64}).provenance.class_name == "BertForMaskedLM"


def test_a_configuration_object():
    loaded = load_model(transformers.GPT2Config(**SMALL))
    assert loaded.module.transformer.wte.weight.shape == (40, 8)


def test_a_run_is_built_again_from_its_copy(saved, tmp_path):
    loaded = load_model(saved, config={"n_layer": 2})
    run = RunDirectory.create(tmp_path, "r")
    run.store_sources(loaded)
    again = stored_model(run, loaded.provenance)
    shapes = {k: v.shape for k, v in loaded.module.state_dict().items()}
    assert {k: v.shape for k, v in again.module.state_dict().items()} == shapes

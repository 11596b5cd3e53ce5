"""Weights from files: prefixes, ties, misfits, unsafe files."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from anyformer.core.errors import ConstructError
from anyformer.models.example_gpt import GPT
from anyformer.models.source import load_model
from anyformer.models.weights import load_weights


def gpt(seed: int, **sizes: int) -> GPT:
    torch.manual_seed(seed)
    return GPT(**{"vocab_size": 11, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, **sizes})


def untied(model: GPT) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_loaded(model: GPT, source: GPT) -> None:
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))
    assert model.head.weight is model.tokens.weight


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod.", "module._orig_mod."])
def test_safetensors_and_state_dicts_with_any_known_prefix(tmp_path, prefix):
    source = gpt(1)
    state = {prefix + name: tensor for name, tensor in untied(source).items()}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        model = gpt(2)
        load_weights(model, tmp_path / name)
        assert_loaded(model, source)


@pytest.mark.parametrize("left_out", ["head.weight", "tokens.weight"])
def test_one_of_two_tied_names_is_enough(tmp_path, left_out):
    source, model = gpt(1), gpt(2)
    state = untied(source)
    del state[left_out]
    save_file(state, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert_loaded(model, source)


def test_tied_names_that_differ_are_refused(tmp_path):
    state = untied(gpt(1))
    state["head.weight"] += 1
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ConstructError, match="one tensor in the model, but differ in the file"):
        load_weights(gpt(2), tmp_path / "w.pt")


def test_a_training_checkpoint_gives_its_state_dict(tmp_path):
    source, model = gpt(1), gpt(2)
    torch.save({"epoch": 3, "model_state_dict": source.state_dict()}, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert_loaded(model, source)


def test_misfits_are_named_and_nothing_is_loaded(tmp_path):
    state = untied(gpt(1))
    del state["norm.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["positions.weight"] = torch.zeros(9, 8)
    torch.save(state, tmp_path / "w.pt")
    model = gpt(2)
    before = untied(model)
    with pytest.raises(ConstructError) as caught:
        load_weights(model, tmp_path / "w.pt")
    message = str(caught.value)
    assert "missing in the file (1): norm.weight" in message
    assert "unexpected (1): extra.weight" in message
    assert "positions.weight: file (9, 8), model (8, 8)" in message
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(ConstructError, match="no weights file at"):
        load_weights(gpt(1), tmp_path / "none.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ConstructError, match="not a readable safetensors file"):
        load_weights(gpt(1), tmp_path / "broken.safetensors")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ConstructError, match="cannot be loaded as a state dict"):
        load_weights(gpt(1), tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ConstructError, match=r"holds no state dict(?s:.*)list"):
        load_weights(gpt(1), tmp_path / "list.pt")


def test_a_pickled_module_or_code_is_not_run(tmp_path):
    torch.save(gpt(1), tmp_path / "module.pt")
    with pytest.raises(ConstructError, match="they can run code"):
        load_weights(gpt(2), tmp_path / "module.pt")

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConstructError):
        load_weights(gpt(2), tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_load_model_takes_weights(tmp_path):
    source = gpt(1)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    sizes = {"vocab_size": 11, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
    loaded = load_model("example:gpt", config=sizes, weights=tmp_path / "w.pt")
    assert_loaded(loaded.module, source)


def test_weights_with_nan_are_refused_and_nothing_is_copied(tmp_path):
    state = untied(gpt(1))
    name = next(iter(state))
    state[name][0, 3] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    model = gpt(2)
    before = untied(model)
    with pytest.raises(ConstructError, match=rf"hold NaN\n.*{name}"):
        load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

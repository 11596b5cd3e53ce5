"""Files of a model compute what the model computes, at lengths they were not made from; or there is no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from anyformer.core.errors import ExportError, ParityError
from anyformer.export.called import Shapes
from anyformer.export.onnxfile import write_onnx
from anyformer.export.parity import prove
from anyformer.export.programs import write_program, write_torchscript
from anyformer.models.callplan import CallPlan, infer_call_plan
from anyformer.models.source import load_model
from tests import zoo

V, D = 31, 16


def entry_of(name: str) -> zoo.Entry:
    return next(entry for entry in zoo.ENTRIES if entry.name == name)


def built(name: str) -> tuple[nn.Module, CallPlan, zoo.Entry]:
    entry = entry_of(name)
    module = load_model(entry.path).module
    return module, infer_call_plan(module), entry


def state_of(module: nn.Module) -> list[Any]:
    return [module.training, *(t.clone() for t in module.state_dict().values()), torch.get_rng_state()]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(one, other, strict=True))


class Block(nn.Module):
    """One causal layer; what is done to the ids first, and to the logits last, is given."""

    def __init__(self, length: int = 48) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(V, D), nn.Embedding(length, D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, V)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        q, k, v = self.qkv(x).chunk(3, -1)
        later = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).triu(1)
        scores = (q @ k.transpose(-1, -2) / D**0.5).masked_fill(later, float("-inf"))
        return self.out(x + scores.softmax(-1) @ v)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("plain_gpt", "torch.export"),
        ("mask_tt_additive", "torch.export"),
        ("out_namespace", "torch.export"),
        ("builder_export", "torch.export"),
        ("rnn_hidden", "trace"),
        ("lengths", "trace"),
        ("out_flat_always", None),
        ("encoder_mlm", "torch.export"),
        ("classifier_mean", "torch.export"),
    ],
)
def test_onnx_of_the_zoo(name: str, mode: str | None, tmp_path: Path) -> None:
    module, plan, entry = built(name)
    before = state_of(module)
    written = write_onnx(module, plan, tmp_path / "model.onnx")
    assert same(before, state_of(module))
    assert mode in (None, written.mode)
    assert written.parity is not None
    assert len(written.parity.shapes) >= 5
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    ids = torch.randint(1, entry.rows, (3, 10), generator=torch.Generator().manual_seed(7))
    assert (3, 10) not in written.parity.shapes
    given = {"input_ids": ids.numpy(), "attention_mask": np.ones((3, 10), dtype=np.int64)}
    (logits,) = session.run(None, {i.name: given[i.name] for i in session.get_inputs()})
    assert entry.reference is not None
    with torch.no_grad():
        wanted = entry.reference(module.eval(), ids)
    np.testing.assert_allclose(logits, wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_an_encoder_decoder_has_two_lengths(tmp_path: Path) -> None:
    module, plan, entry = built("seq2seq_forward")
    written = write_onnx(module, plan, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(written.path))
    source, target = torch.randint(3, 30, (2, 8)), torch.randint(3, 30, (2, 15))
    (logits,) = session.run(None, {"input_ids": source.numpy(), "target_ids": target.numpy()})
    assert entry.reference is not None
    with torch.no_grad():
        wanted = entry.reference(module.eval(), source, target)
    np.testing.assert_allclose(logits, wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_padding_is_hidden_by_the_files_own_mask(tmp_path: Path) -> None:
    module, plan, _ = built("padding_keep")
    assert Shapes.of(plan).names == ("input_ids", "attention_mask")
    written = write_onnx(module, plan, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(written.path))
    ids = torch.randint(1, plan.vocab_size, (1, 9)).numpy()
    keep = np.array([[1] * 6 + [0] * 3])
    other = ids.copy()
    other[:, 6:] = 1 + ids[:, 6:] % (plan.vocab_size - 1)
    one, two = (session.run(None, {"input_ids": i, "attention_mask": keep})[0] for i in (ids, other))
    np.testing.assert_allclose(one[:, :6], two[:, :6], atol=1e-6)
    assert np.abs(one - session.run(None, {"input_ids": ids, "attention_mask": keep * 0 + 1})[0]).max() > 1e-4


@pytest.mark.parametrize("opset", [14, 17, 20])
def test_an_opset_that_is_asked_for_is_in_the_file(opset: int, tmp_path: Path) -> None:
    import onnx

    module = Block()
    written = write_onnx(module, infer_call_plan(module), tmp_path / "model.onnx", opset=opset)
    (found,) = [o.version for o in onnx.load(written.path).opset_import if o.domain in ("", "ai.onnx")]
    assert (found, written.opset) == (opset, opset)


def test_what_has_no_form_is_named_with_what_would_help(tmp_path: Path) -> None:
    module, plan, _ = built("start_pos")
    with pytest.raises(ExportError, match="no ONNX file") as caught:
        write_onnx(module, plan, tmp_path / "model.onnx")
    assert "complex" in caught.value.detail
    assert "sin and cos" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


class Odd(nn.Module):
    """A branch that hangs on the batch size: a trace keeps the one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(V, D), nn.Linear(D, V)

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.out(self.words(ids))
        if ids.shape[0] % 2 == 1:
            return logits + 0.1 * self.words.weight[0, 0]
        return logits


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Odd()
    plan = infer_call_plan(Block())
    with pytest.raises(ParityError, match=r"logits are .* apart") as caught:
        write_torchscript(module, plan, tmp_path / "model.pt", mode="trace")
    assert "by trace" in caught.value.detail
    assert list(tmp_path.iterdir()) == []
    assert write_torchscript(module, plan, tmp_path / "model.pt").mode == "script"
    with pytest.raises(ExportError):
        write_program(module, plan, tmp_path / "model.pt2")


def test_a_small_difference_is_seen_at_any_shape() -> None:
    module = Block()
    plan = infer_call_plan(module)

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():
            logits = module(inputs[0])
        return logits + (2e-3 if inputs[0].shape == (4, 21) else 0)

    with pytest.raises(ParityError, match=r"at 4 × 21 its logits are 0\.0"):
        prove(module, plan, run)
    exact = prove(module, plan, lambda inputs: module(inputs[0]).detach())
    assert exact.max_error == 0
    assert (1, 48) in exact.shapes  # as long as the model reads


def test_torchscript_and_programs_run_without_the_models_file(tmp_path: Path) -> None:
    module = Block()
    plan = infer_call_plan(module)
    ids = torch.randint(0, V, (2, 19))
    with torch.no_grad():
        wanted = module.eval()(ids)
        script = write_torchscript(module, plan, tmp_path / "model.pt")
        assert torch.allclose(torch.jit.load(str(script.path))(ids), wanted, atol=1e-5)
        program = write_program(module, plan, tmp_path / "model.pt2")
        assert torch.allclose(torch.export.load(program.path).module()(ids), wanted, atol=1e-5)


def test_one_length_and_one_batch_size_stay_fixed(tmp_path: Path) -> None:
    class Fixed(Block):
        def __init__(self) -> None:
            super().__init__(12)
            self.block_size = 12

        def forward(self, ids: Tensor) -> Tensor:
            assert ids.shape[1] == 12
            return super().forward(ids)

    module = Fixed()
    plan = infer_call_plan(module)
    assert plan.only_length == 12
    written = write_onnx(module, plan, tmp_path / "model.onnx")
    assert written.parity is not None
    assert {shape[1] for shape in written.parity.shapes} == {12}

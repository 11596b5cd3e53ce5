"""Builder exports that are no plain decoders: which of them look at both sides, convolve, or read two sequences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from anyformer.core.errors import CallError
from anyformer.models.callplan import call_logits, infer_call_plan
from anyformer.models.graph import ComputationalGraphExecutor, Graph, derive_graph, run_graph
from anyformer.models.source import load_model
from tests.models.builder_twins import BOTH_SIDES, MIXERS, EncoderDecoder
from tests.models.test_graph import EXPORTS, export, ids, pair, refused, written


def measured(module: nn.Module, name: str) -> str:
    return next((f"{f.verdict}: {f.measured}; {f.reason}" for f in derive_graph(module).findings if f.name == name), "")


# ---------------------------------------------------------------- both sides


def test_a_classifier_gets_no_causal_mask_and_says_so() -> None:
    module, twin = pair("mean_pool_classifier")
    module.eval()
    twin.eval()
    graph = derive_graph(module)
    assert not graph.causal
    assert measured(module, "causal mask") == ("note: none added; it gives one row of 4 numbers per text: a classifier")
    batch = ids(3, 7)
    assert (ComputationalGraphExecutor(module).forward(batch) - twin(batch)).abs().max() <= 1e-6
    asked = derive_graph(module, causal=True)
    assert asked.causal
    assert (run_graph(module, asked, batch) - twin(batch)).abs().max() > 1e-3  # the mask would be another model
    assert Graph.from_dict(graph.to_dict()) == graph


@pytest.mark.parametrize(("name", "family"), [("mean_pool_classifier", "classifier"), ("masked_head", "encoder")])
def test_the_plan_of_an_export_that_looks_at_both_sides(name: str, family: str) -> None:
    module, twin = pair(name)
    plan = infer_call_plan(module)
    assert (plan.family, plan.causal) == (family, False)
    assert [f for f in plan.findings if f.verdict == "fail"] == []
    module.eval()
    twin.eval()
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    ours, theirs = call_logits(module, plan, ids(2, 6), mask), twin(ids(2, 6), mask)
    if family == "encoder":  # of padding itself nothing is asked
        ours, theirs = ours[mask.bool()], theirs[mask.bool()]
    assert (ours - theirs).abs().max() <= 1e-6


@pytest.mark.parametrize("name", BOTH_SIDES)
def test_padding_is_looked_at_by_nobody_in_the_attention(name: str) -> None:
    module = export(name).eval()
    seen: list[torch.Tensor] = []
    module.get_submodule("mhsa_0").register_forward_hook(lambda m, given, out: seen.append(out[0]))
    graph, batch = derive_graph(module), ids(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]] * 2)
    seen.clear()
    for tokens in (batch, torch.where(mask.bool(), batch, (batch + 1) % 29)):
        run_graph(module, graph, tokens, mask)
    assert torch.equal(seen[0][:, :4], seen[1][:, :4])


def test_the_users_word_decides_about_the_mask() -> None:
    module = export("one_block")
    plan = infer_call_plan(module, objective="masked")
    assert (plan.family, plan.causal) == ("encoder", False)
    assert infer_call_plan(module, overrides={"family": "encoder"}).graph == plan.graph
    assert plan.graph is not None
    assert measured(module, "causal mask").startswith("note: added")  # unasked, it is a decoder
    assert infer_call_plan(export("masked_head"), objective="causal").causal


EMBEDDED = """
self.embedding_0_token = nn.Embedding(30, 8)
self.mhsa_0 = nn.MultiheadAttention(8, 2, batch_first=True)
"""


@pytest.mark.parametrize(
    ("head", "end", "causal"),
    [
        ("self.classifier_0 = nn.Linear(8, 30)", "self.classifier_0(residual_0_output)", True),  # V, every position
        ("self.classifier_0 = nn.Linear(8, 5)", "self.classifier_0(residual_0_output)", False),  # labels of tokens
        ("self.output_0 = nn.Linear(8, 5)", "self.output_0(residual_0_output[:, 0])", False),
        ("self.output_0 = nn.Linear(8, 1)", "self.output_0(residual_0_output.mean(1)).squeeze(-1)", False),
        ("self.output_0 = nn.Linear(8, 30)", "self.output_0(residual_0_output[:, -1])", True),  # the next token
        ("self.output_0 = nn.Linear(8, 30)", "self.output_0(residual_0_output).view(-1, 30)", True),
    ],
)
def test_the_form_of_the_output_decides(head: str, end: str, causal: bool, tmp_path: Path) -> None:
    module = written(
        tmp_path,
        EMBEDDED + head,
        f"""
        def forward(self, input_0_tokens, residual_0_output):
            x = self.embedding_0_token(input_0_tokens)
            mhsa_0_output, _ = self.mhsa_0(x, x, x)
            return {end}
        """,
    )
    assert derive_graph(module).causal is causal


POOLED = """
def forward(self, input_0_tokens, residual_0_output, pooling_0_output):
    x = self.embedding_0_token(input_0_tokens)
    mhsa_0_output, _ = self.mhsa_0(x, x, x)
    return self.classifier_0(pooling_0_output)
"""
NODES = EMBEDDED + "# node: residual_0\n# node: pooling_0\n"


def test_a_pooling_module_that_forward_never_calls_pools_over_time(tmp_path: Path) -> None:
    members = NODES + "self.pooling_0 = nn.AdaptiveAvgPool1d(1)\nself.classifier_0 = nn.Linear(8, 3)"
    module = written(tmp_path, members, POOLED).eval()
    batch = ids(2, 5)
    x = module.embedding_0_token(batch)
    expected = module.classifier_0((x + module.mhsa_0(x, x, x)[0]).mean(1))
    graph = derive_graph(module)
    assert not graph.causal
    assert (run_graph(module, graph, batch) - expected).abs().max() <= 1e-6


def test_a_pooling_without_a_module_is_not_guessed(tmp_path: Path) -> None:
    text = refused(written(tmp_path, NODES + "self.classifier_0 = nn.Linear(8, 3)", POOLED))
    assert "how pooling_0 is computed cannot be told" in text
    assert "write pooling_0_output = x.mean(dim=1) in forward, or x[:, 0]" in text


# ---------------------------------------------------------------- convolution, recurrence, gates


def test_a_convolution_of_a_decoder_sees_no_token_ahead() -> None:
    module = export("conv_swiglu").eval()
    assert measured(module, "causal padding").startswith("note: conv1d_0: on the left")
    plan = infer_call_plan(module)
    assert plan.causal
    batch = ids(1, 9)
    whole = call_logits(module, plan, batch)
    parts = [call_logits(module, plan, batch[:, :t])[:, -1] for t in range(1, 10)]
    assert (whole[0] - torch.cat(parts)).abs().max() <= 1e-5


def test_a_convolution_that_is_padded_by_hand_is_left_alone(tmp_path: Path) -> None:
    module = written(
        tmp_path,
        EMBEDDED + "self.conv1d_0 = nn.Conv1d(8, 8, 3, padding=1)\nself.output_0 = nn.Linear(8, 30)",
        """
        def forward(self, input_0_tokens, embedding_0_output, residual_0_output):
            x = nn.functional.pad(embedding_0_output.transpose(1, 2), (1, 0))[:, :, :-1]
            x = self.conv1d_0(x).transpose(1, 2)
            return self.output_0(x)
        """,
    )
    assert measured(module, "causal padding") == ""
    x = nn.functional.pad(module.embedding_0_token(ids(2, 5)).mT, (1, 0))[:, :, :-1]
    expected = module.output_0(module.conv1d_0(x).mT)
    assert (run_graph(module, derive_graph(module), ids(2, 5)) - expected).abs().max() <= 1e-6


def test_a_recurrent_layer_gives_its_states_alone(tmp_path: Path) -> None:
    module = written(
        tmp_path,
        EMBEDDED + "self.gru_0 = nn.GRU(8, 8, batch_first=True)\nself.output_0 = nn.Linear(8, 30)",
        """
        def forward(self, input_0_tokens, embedding_0_output, residual_0_output):
            gru_0_output = self.gru_0(embedding_0_output)
            return self.output_0(gru_0_output)
        """,
    )
    batch = ids(2, 5)
    expected = module.output_0(module.gru_0(module.embedding_0_token(batch))[0])
    assert (run_graph(module, derive_graph(module), batch) - expected).abs().max() <= 1e-6


def test_what_a_residual_adds_after_an_unadded_layer_is_said(tmp_path: Path) -> None:
    for name in MIXERS:
        assert "it could be" in measured(export(name), "residual"), name
    assert measured(export("sinusoidal"), "residual") == ""
    assert "post-norm" in measured(export("two_residual_styles"), "residuals")


def test_two_linear_parts_without_an_activation_are_not_guessed(tmp_path: Path) -> None:
    members = EMBEDDED + "self.ffn_0_linear1 = nn.Linear(8, 16)\nself.ffn_0_linear2 = nn.Linear(16, 8)\n"
    forward = "def forward(self, input_0_tokens, ffn_0_output):\n    return self.output_0(ffn_0_output)"
    text = refused(written(tmp_path, members + "self.output_0 = nn.Linear(8, 30)", forward))
    assert "how the parts of ffn_0 combine is written nowhere" in text


# ---------------------------------------------------------------- two sequences


def two_sequences() -> tuple[nn.Module, nn.Module]:
    module, twin = export("encoder_decoder").eval(), EncoderDecoder().eval()
    twin.load_state_dict(module.state_dict())
    return module, twin


def test_an_export_with_two_inputs_is_an_encoder_decoder() -> None:
    module, twin = two_sequences()
    plan = infer_call_plan(module)
    assert (plan.family, plan.causal, plan.token_arg, plan.target_arg) == (
        "encoder_decoder",
        True,
        "input_0_tokens",
        "input_1_tokens",
    )
    found = {f.name: f for f in plan.findings}
    assert [f for f in plan.findings if f.verdict == "fail"] == []
    assert (found["source"].verdict, found["causality"].verdict) == ("ok", "ok")
    assert found["causal mask"].reason.startswith("its decoder's attention has none")
    source, target = ids(3, 7), ids(3, 5, 1)
    assert (call_logits(module, plan, source, target_ids=target) - twin(source, target)).abs().max() <= 1e-6
    mask, target_mask = (
        torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 7]),
        torch.tensor([[1] * 5] * 2 + [[1] * 3 + [0] * 2]),
    )
    executor = ComputationalGraphExecutor(module)
    ours, theirs = executor.forward(source, mask, target, target_mask), twin(source, target, mask, target_mask)
    assert (ours - theirs)[target_mask.bool()].abs().max() <= 1e-6
    changed = torch.where(mask.bool(), source, (source + 1) % 29)
    assert torch.equal(executor.forward(changed, mask, target), executor.forward(source, mask, target))
    assert Graph.from_dict(plan.graph.to_dict()) == plan.graph  # type: ignore[union-attr]
    with pytest.raises(CallError, match="needs target_ids"):
        executor.forward(source)


def test_gradients_of_an_encoder_decoder_are_those_of_its_twin() -> None:
    module, twin = two_sequences()
    source, target = ids(2, 6), ids(2, 4, 1)
    run_graph(module, derive_graph(module), source, None, target).logsumexp(-1).sum().backward()
    twin(source, target).logsumexp(-1).sum().backward()
    expected = dict(twin.named_parameters())
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad - expected[name].grad).abs().max() <= 1e-5, name


def test_the_sequence_that_the_logits_follow_is_the_target(tmp_path: Path) -> None:
    """The inputs may stand the other way round."""
    text = (EXPORTS / "encoder_decoder.py").read_text("utf-8")
    text = text.replace("input_0", "input_9").replace("input_1", "input_0").replace("input_9", "input_1")
    text = text.replace(
        "        input_1_tokens,\n        input_0_tokens,\n", "        input_0_tokens,\n        input_1_tokens,\n"
    )
    file = tmp_path / "model.py"
    file.write_text(text, "utf-8")
    module = load_model(file).module.eval()
    twin = EncoderDecoder().eval()
    twin.load_state_dict(module.state_dict())
    plan = infer_call_plan(module)
    assert (plan.token_arg, plan.target_arg) == ("input_1_tokens", "input_0_tokens")
    source, target = ids(2, 7), ids(2, 5, 1)
    assert (call_logits(module, plan, source, target_ids=target) - twin(source, target)).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            "crossattn_0_output, _ = self.crossattn_0(layernorm_1_output, layernorm_0_output, layernorm_0_output)",
            "pass",
            "what crossattn_0 reads cannot be told: two sequences",
        ),
        ("        tgt_pos = torch.arange(input_1_tokens.size(1), device=input_1_tokens.device)\n", "", "tgt_pos"),
        (
            "        input_1_tokens,\n",
            "        input_1_tokens,\n        input_2_tokens,\n",
            "takes 3 inputs: input_0_tokens, input_1_tokens, input_2_tokens",
        ),
    ],
)
def test_two_inputs_that_cannot_be_told_apart_are_refused(before: str, after: str, said: str, tmp_path: Path) -> None:
    text = (EXPORTS / "encoder_decoder.py").read_text("utf-8")
    assert before in text
    file = tmp_path / "model.py"
    file.write_text(text.replace(before, after), "utf-8")
    with pytest.raises(CallError, match=said):
        infer_call_plan(load_model(file).module)


def test_two_inputs_and_one_row_of_classes_are_refused(tmp_path: Path) -> None:
    text = (
        (EXPORTS / "encoder_decoder.py")
        .read_text("utf-8")
        .replace("return output_0_logits", "return output_0_logits.mean(1)")
    )
    file = tmp_path / "model.py"
    file.write_text(text, "utf-8")
    with pytest.raises(CallError, match="as the decoder's input: no logits"):
        infer_call_plan(load_model(file).module)

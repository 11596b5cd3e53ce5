"""Builder exports: the derived dataflow against the same models corrected by hand."""

from __future__ import annotations

import copy
import json
import runpy
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import anyformer.models.graph as graph_module
from anyformer.core.errors import CallError
from anyformer.models.callplan import infer_call_plan
from anyformer.models.graph import (
    ComputationalGraphExecutor,
    Graph,
    derive_graph,
    needs_graph,
    run_graph,
)
from anyformer.models.source import load_model
from tests.models.builder_twins import BOTH_SIDES, MIXERS, TWINS

EXPORTS = Path(__file__).parent / "builder_exports"


def export(name: str) -> nn.Module:
    torch.manual_seed(3)
    folder = EXPORTS / name  # with a config.json beside the model
    return load_model(folder if folder.is_dir() else EXPORTS / f"{name}.py").module


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """The export and its hand-corrected twin with the same weights."""
    module, twin = export(name), {**TWINS, **MIXERS, **BOTH_SIDES}[name]()
    twin.load_state_dict(module.state_dict())
    return module, twin


def ids(B: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 29, (B, T), generator=torch.Generator().manual_seed(seed))


def written(tmp_path: Path, members: str, forward: str) -> nn.Module:
    """A module of an export with these members of __init__ and this forward."""
    text = "import torch\nimport torch.nn as nn\n\n\nclass CustomTransformer(nn.Module):\n    def __init__(self):\n"
    text += "        super().__init__()\n" + textwrap.indent(textwrap.dedent(members).strip(), " " * 8) + "\n\n"
    text += textwrap.indent(textwrap.dedent(forward).strip(), " " * 4) + "\n"
    file = tmp_path / "model.py"
    file.write_text(text, "utf-8")
    return load_model(file).module


EMBEDDING = """
# node: embedding_0
self.embedding_0_token = nn.Embedding(30, 8)
"""


@pytest.mark.parametrize("name", {**TWINS, **MIXERS, **BOTH_SIDES})
@pytest.mark.parametrize("training", [False, True])
def test_an_export_equals_its_hand_corrected_twin(name: str, training: bool) -> None:
    module, twin = pair(name)
    module.train(training)
    twin.train(training)
    graph = derive_graph(module)
    assert needs_graph(module)
    for number, (B, T) in enumerate([(1, 1), (3, 7), (2, 16)]):
        module.zero_grad()
        twin.zero_grad()
        batch = ids(B, T, number)
        ours, theirs = run_graph(module, graph, batch), twin(batch)
        assert (ours - theirs).abs().max() <= 1e-6
        labels = batch.flatten() if ours.dim() == 3 else batch[:, 0] % ours.shape[1]
        for logits in (ours, theirs):
            nn.functional.cross_entropy(logits.flatten(0, -2), labels).backward()
        gradients = {n: p.grad for n, p in twin.named_parameters()}
        for parameter_name, parameter in module.named_parameters():
            expected = gradients[parameter_name]
            assert parameter.grad is not None
            assert expected is not None
            assert (parameter.grad - expected).abs().max() <= 1e-6, parameter_name


@pytest.mark.parametrize("name", TWINS)
def test_padding_is_looked_at_by_nobody(name: str) -> None:
    module, twin = pair(name)
    module.eval()
    twin.eval()
    graph, batch = derive_graph(module), ids(3, 8)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1, 1, 0, 1, 1, 1, 0, 1]])
    ours = run_graph(module, graph, batch, mask)
    kept = mask.bool()
    assert (ours - twin(batch, mask))[kept].abs().max() <= 1e-6
    changed = torch.where(kept, batch, (batch + 1) % 29)
    assert torch.equal(run_graph(module, graph, changed, mask)[kept], ours[kept])
    assert not torch.equal(run_graph(module, graph, changed)[kept], run_graph(module, graph, batch)[kept])
    left = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]] * 3)
    assert bool(run_graph(module, graph, batch, left).isfinite().all())


@pytest.mark.parametrize("name", {**TWINS, **MIXERS})
def test_the_plan_proves_the_graph_and_leaves_no_trace(name: str) -> None:
    module = export(name)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    state = torch.get_rng_state()
    findings = {f.name: f for f in infer_call_plan(module).findings}
    assert {n: findings[n].verdict for n in ("causality", "batch", "repeat")} == dict.fromkeys(
        ("causality", "batch", "repeat"), "ok"
    )
    assert "unused nodes" not in findings
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


def test_the_plan_sees_a_leak_mixed_rows_and_an_unused_node(tmp_path: Path) -> None:
    module = written(
        tmp_path,
        EMBEDDING
        + "self.mhsa_0 = nn.MultiheadAttention(8, 2)\n"
        + "self.ffn_0 = nn.Linear(8, 8)\n"
        + "self.output_0 = nn.Linear(8, 30)\n",
        """
        def forward(self, input_0_tokens, residual_0_output):
            x = self.embedding_0_token(input_0_tokens)
            free = torch.zeros(x.shape[0], x.shape[0]).transpose(0, 1)  # swaps axes itself, and masks itself
            mhsa_0_output, _ = self.mhsa_0(x, x, x, attn_mask=free)
            y = residual_0_output.flip(1)
            return self.output_0(y)
        """,
    )
    findings = {f.name: f for f in infer_call_plan(module).findings}
    assert findings["causality"].verdict == "fail"
    assert findings["batch"].verdict == "fail"
    assert (findings["unused nodes"].verdict, findings["unused nodes"].measured) == ("warn", "ffn_0")


def test_each_node_runs_once_on_its_real_input() -> None:
    module, twin = pair("two_blocks_pre_norm")
    executor = ComputationalGraphExecutor(module)
    calls: dict[str, list[Tensor]] = {}
    for name, member in module.named_children():
        member.register_forward_hook(lambda m, given, out, name=name: calls.setdefault(name, []).append(given[0]))
    seen: dict[str, Tensor] = {}
    for name, member in twin.named_children():
        member.register_forward_hook(lambda m, given, out, name=name: seen.__setitem__(name, given[0]))
    batch = ids(2, 6)
    executor.forward(batch)
    twin(batch)
    assert {name: len(given) for name, given in calls.items()} == dict.fromkeys(dict(module.named_children()), 1)
    for name, given in seen.items():
        assert (calls[name][0] - given).abs().max() <= 1e-6, name


@pytest.mark.parametrize(
    "embedded",
    [
        "x = self.embedding_0_token(input_0_tokens)\n    y = x * 3.0",
        "x = self.embedding_0_token(input_0_tokens)\n    if x.shape[1]:\n        y = x * 3.0",
        "y = self.embedding_0_token(input_0_tokens.long()) * 3.0",
    ],
)
def test_the_stream_is_the_value_that_the_sublayer_read(tmp_path: Path, embedded: str) -> None:
    """Not an earlier one: here the embedding is scaled before the attention reads it."""
    members = (
        EMBEDDING + "self.mhsa_0 = nn.MultiheadAttention(8, 2, batch_first=True)\nself.output_0 = nn.Linear(8, 30)\n"
    )
    forward = f"def forward(self, input_0_tokens, residual_0_output):\n    {embedded}\n"
    forward += "    mhsa_0_output, _ = self.mhsa_0(y, y, y)\n    return self.output_0(residual_0_output)\n"
    module = written(tmp_path, members, forward)
    batch = ids(2, 5)
    y = module.embedding_0_token(batch) * 3.0
    later = torch.ones(5, 5).triu(1).bool()
    expected = module.output_0(y + module.mhsa_0(y, y, y, attn_mask=later)[0])
    assert (run_graph(module, derive_graph(module), batch) - expected).abs().max() <= 1e-6


def test_the_executor_is_what_the_reference_promises() -> None:
    module, twin = pair("one_block")
    executor = ComputationalGraphExecutor(module)
    batch, mask = ids(2, 5), torch.ones(2, 5, dtype=torch.long)
    assert (executor.forward(batch, mask) - twin(batch)).abs().max() <= 1e-6
    assert torch.equal(executor(batch), executor.forward(batch))
    layers = executor.get_layer_map()
    assert layers == dict(module.named_children())
    assert list(layers)[:3] == ["embedding_0_token", "embedding_0_pos", "embedding_0_dropout"]
    assert executor.graph == derive_graph(module)


def test_the_graph_is_data_and_only_its_own_modules_code_runs() -> None:
    module = export("one_block")
    graph = derive_graph(module)
    assert Graph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph
    steps = {s.name: s for s in graph.steps}
    assert steps["mhsa_0_output"].kind == "attention"
    assert steps["mhsa_0_output"].inputs == ("hidden", "embedding_0_output")
    assert steps["residual_1_output"].inputs == ("layernorm_0_output", "ffn_0_output")
    assert (steps["residual_1_output"].line, steps["mhsa_0_output"].line) == (None, 40)
    forged = graph.to_dict()
    forged["steps"][0]["code"] = "raise SystemExit"
    with pytest.raises(CallError, match="not that of this CustomTransformer"):
        run_graph(module, Graph.from_dict(forged), ids(1, 2))
    with pytest.raises(TypeError, match="a graph has no wrong"):
        Graph.from_dict({**graph.to_dict(), "wrong": 1})


def test_too_many_positions_name_the_rows() -> None:
    module = export("one_block")
    graph = derive_graph(module)
    assert graph.positions == 16
    with pytest.raises(CallError, match=r"17 tokens is longer than the position embedding's 16 rows"):
        run_graph(module, graph, ids(1, 17))


def test_copies_and_compiled_modules_have_the_same_graph() -> None:
    module, twin = pair("two_blocks_post_norm")
    graph = derive_graph(module)
    other = copy.deepcopy(module)
    assert derive_graph(other) == graph
    assert derive_graph(torch.compile(module)) == graph  # type: ignore[arg-type]
    assert (run_graph(other, graph, ids(2, 4)) - twin(ids(2, 4))).abs().max() <= 1e-6


def test_an_error_inside_points_at_the_users_line(tmp_path: Path) -> None:
    module = written(
        tmp_path,
        EMBEDDING + "# node: linear_0\nself.linear_0 = nn.Linear(7, 30)",
        """
        def forward(self, input_0_tokens, embedding_0_output):
            return self.linear_0(embedding_0_output)
        """,
    )
    from anyformer.models.blame import blame

    with pytest.raises(RuntimeError) as caught:
        run_graph(module, derive_graph(module), ids(1, 2))
    assert "model.py:14: return self.linear_0(embedding_0_output)" in blame(caught.value)


# ---------------------------------------------------------------- what needs a graph


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mhsa_0 = nn.Linear(2, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return input_ids


class _Foreign(_Named):
    def forward(self, input_ids: Tensor, encoder_0_output: Tensor) -> Tensor:  # type: ignore[override]
        return input_ids + encoder_0_output


class _Optional(_Named):
    def forward(self, input_ids: Tensor, mhsa_0_output: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return input_ids


class _Needs(_Named):
    def forward(self, input_ids: Tensor, mhsa_0_output: Tensor) -> Tensor:  # type: ignore[override]
        return mhsa_0_output


def test_only_a_required_output_of_an_own_node_needs_a_graph() -> None:
    assert [needs_graph(m()) for m in (_Named, _Foreign, _Optional, _Needs)] == [False, False, False, True]
    assert not needs_graph(export("plain_without_mask"))


# ---------------------------------------------------------------- what cannot be derived


def refused(module: nn.Module) -> str:
    with pytest.raises(CallError) as caught:
        derive_graph(module)
    return str(caught.value)


def test_a_missing_head_is_said_with_its_line_and_the_way_out() -> None:
    text = refused(export("as_documented"))
    assert "the output projection is missing" in text
    assert "as_documented.py:44: return output_0_logits" in text
    assert "layernorm_1_output (B, T, 24); logits would be (B, T, 61)" in text
    assert text.endswith("→ anyformer repair MODEL")


HEAD = "# node: output_0\nself.output_0 = nn.Linear(8, 30)\n"
CASES = {
    "undefined": (
        EMBEDDING + HEAD,
        "def forward(self, input_0_tokens, mhsa_3_output):\n    return self.output_0(mhsa_3_output)",
        "forward asks for mhsa_3_output, which nothing computes",
        "nodes in __init__: embedding_0, output_0",
    ),
    "undefined return": (
        EMBEDDING + HEAD,
        "def forward(self, input_0_tokens):\n    x = self.embedding_0_token(input_0_tokens)\n    return wanted",
        "forward returns wanted, which is computed nowhere",
        "model.py:15: return wanted",
    ),
    "cycle": (
        EMBEDDING + "# node: ffn_0\nself.ffn_0 = nn.Linear(8, 8)\n# node: ffn_1\nself.ffn_1 = nn.Linear(8, 8)\n" + HEAD,
        """
        def forward(self, input_0_tokens, ffn_1_output):
            ffn_0_output = self.ffn_0(ffn_1_output)
            ffn_1_output = self.ffn_1(ffn_0_output)
            return self.output_0(ffn_1_output)
        """,
        "a node needs its own output",
        "ffn_0_output = self.ffn_0(ffn_1_output)",
    ),
    "two branches": (
        EMBEDDING + "# node: ffn_0\nself.ffn_0 = nn.Linear(8, 8)\n# node: ffn_1\nself.ffn_1 = nn.Linear(8, 8)\n" + HEAD,
        """
        def forward(self, input_0_tokens, residual_0_output):
            x = self.embedding_0_token(input_0_tokens)
            ffn_0_output = self.ffn_0(x)
            ffn_1_output = self.ffn_1(x)
            return self.output_0(residual_0_output)
        """,
        "what residual_0 adds cannot be told",
        "ffn_0_output, ffn_1_output",
    ),
    "two sublayers": (
        EMBEDDING
        + "self.mhsa_0 = nn.MultiheadAttention(8, 2, batch_first=True)\n"
        + "self.ffn_0 = nn.Sequential(nn.Linear(8, 8), nn.ReLU())\n"
        + HEAD,
        """
        def forward(self, input_0_tokens, residual_0_output):
            x = self.embedding_0_token(input_0_tokens)
            mhsa_0_output, _ = self.mhsa_0(x, x, x)
            ffn_0_output = self.ffn_0(mhsa_0_output)
            return self.output_0(residual_0_output)
        """,
        "two sublayers could feed residual_0",
        "candidates: ffn_0_output, mhsa_0_output",
    ),
    "concat": (
        EMBEDDING + "# node: concat_0\n" + HEAD,
        "def forward(self, input_0_tokens, concat_0_output):\n    return self.output_0(concat_0_output)",
        "how concat_0 is computed cannot be told: it has no module",
        "model.py",
    ),
    "overwritten twice": (
        EMBEDDING + "# node: ffn_0\nself.ffn_0 = nn.Linear(8, 8)\n" + HEAD,
        """
        def forward(self, input_0_tokens, ffn_0_output):
            y = self.output_0(ffn_0_output)
            x = self.embedding_0_token(input_0_tokens)
            ffn_0_output = self.ffn_0(x)
            ffn_0_output = ffn_0_output * 2
            return y
        """,
        "ffn_0_output is read before it is computed",
        "it is computed on several lines: 18, 19",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_derived_is_explained(case: str, tmp_path: Path) -> None:
    members, forward, what, detail = CASES[case]
    text = refused(written(tmp_path, members, forward))
    assert text.startswith(f"CustomTransformer: {what}")
    assert detail in text


def test_a_file_changed_since_it_was_loaded_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    text = (EXPORTS / "one_block.py").read_text("utf-8")
    file.write_text(text, "utf-8")
    module = load_model(file).module
    time.sleep(0.01)
    file.write_text(text.replace("self.ffn_0(layernorm_0_output)", "layernorm_0_output"), "utf-8")
    assert "no longer what was loaded" in refused(module)


# ---------------------------------------------------------------- cost


def test_twelve_blocks_at_full_size_are_derived_in_no_time() -> None:
    with torch.device("meta"):  # no memory: 163 million parameters
        module = runpy.run_path(str(EXPORTS / "twelve_blocks.py"))["CustomTransformer"]()
    start = time.process_time()
    graph = derive_graph(module)
    assert time.process_time() - start < 2.0
    assert sum(s.kind == "residual" for s in graph.steps) == 24
    assert sum(s.kind == "attention" for s in graph.steps) == 12
    with torch.device("meta"):
        logits = run_graph(module, graph, torch.zeros(1, 4, dtype=torch.long))
    assert logits.shape == (1, 4, 50257)


def test_a_broken_residual_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twins tell: with the attention's mask left out, the logits differ."""
    module, twin = pair("one_block")
    monkeypatch.setattr(
        graph_module, "hidden_keys", lambda ids, mask, heads: torch.zeros(ids.shape[1], ids.shape[1]).bool()
    )
    assert (run_graph(module, derive_graph(module), ids(2, 6)) - twin(ids(2, 6))).abs().max() > 1e-3

"""Repairs: the proposed file is loaded, called, proven causal, and keeps the user's text and weights."""

from __future__ import annotations

import ast
import inspect
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError, SettingsError
from anyformer.models.callplan import infer_call_plan
from anyformer.models.graph import derive_graph, run_graph
from anyformer.models.repair import Repair, repair_model, save_repair
from anyformer.models.source import load_model
from tests.models.builder_twins import BOTH_SIDES, MIXERS, TWINS, EncoderDecoder, PlainWithMask

EXPORTS = Path(__file__).parent / "builder_exports"


def repaired(tmp_path: Path, name_or_text: str) -> tuple[Repair, nn.Module, nn.Module]:
    """The repair, the original module, and the module of the repaired file with the same weights."""
    file = tmp_path / "model.py"
    folder = EXPORTS / name_or_text if "\n" not in name_or_text else EXPORTS / "none"
    known = folder / "model.py" if folder.is_dir() else EXPORTS / f"{name_or_text}.py"
    file.write_text(known.read_text("utf-8") if "\n" not in name_or_text else name_or_text, "utf-8")
    original = load_model(f"{file}:CustomTransformer").module
    repair = repair_model(load_model(f"{file}:CustomTransformer"))
    target = tmp_path / "fixed.py"
    save_repair(repair, target, own=True)
    fixed = load_model(f"{target}:CustomTransformer").module
    fixed.load_state_dict(original.state_dict(), strict=False)
    return repair, original.eval(), fixed.eval()


def ids(B: int, T: int, high: int = 29) -> Tensor:
    return torch.randint(0, high, (B, T), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", {**TWINS, **MIXERS, **BOTH_SIDES})
def test_a_repaired_export_equals_its_twin(name: str, tmp_path: Path) -> None:
    repair, original, fixed = repaired(tmp_path, name)
    assert list(inspect.signature(fixed.forward).parameters) == ["input_ids", "attention_mask"]
    assert fixed.state_dict().keys() == original.state_dict().keys()
    twin = {**TWINS, **MIXERS, **BOTH_SIDES}[name]().eval()
    twin.load_state_dict(original.state_dict())
    batch, mask = ids(3, 9), torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 9])
    assert (fixed(batch) - twin(batch)).abs().max() <= 1e-6
    kept = mask.bool() if fixed(batch).dim() == 3 else ...
    assert (fixed(batch, attention_mask=mask) - twin(batch, mask))[kept].abs().max() <= 1e-6
    assert (fixed(batch) - run_graph(original, derive_graph(original), batch)).abs().max() <= 1e-6
    plan = infer_call_plan(fixed)
    assert plan.causal == (name not in BOTH_SIDES)
    assert {f.name: f.verdict for f in repair.findings}["equal"] == "ok"
    assert repair_model(load_model(tmp_path / "fixed.py")).needed is False


def test_the_missing_head_is_added_and_said(tmp_path: Path) -> None:
    repair, original, fixed = repaired(tmp_path, "as_documented")
    added = set(fixed.state_dict()) - set(original.state_dict())
    assert added == {"output_0.weight"}
    head = fixed.output_0
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features, head.bias) == (24, 61, None)
    twin = TWINS["one_block"]().eval()
    with torch.no_grad():
        weights = {**fixed.state_dict(), "output_0.bias": torch.zeros(61)}
    twin.load_state_dict(weights)
    assert (fixed(ids(2, 7)) - twin(ids(2, 7))).abs().max() <= 1e-6
    text = "\n".join(repair.changes)
    assert "self.output_0 = nn.Linear(24, 61, bias=False) is added" in text
    assert "weights of its own (1,464), not those of the embedding" in text
    assert "mhsa_0_output, residual_0_output, residual_1_output are computed inside" in text
    assert "residual_1_output is computed: layernorm_0_output + ffn_0_output" in text


def test_the_users_text_stays(tmp_path: Path) -> None:
    repair, _, _ = repaired(tmp_path, "as_documented")
    before = (EXPORTS / "as_documented.py").read_text("utf-8").splitlines()
    after = repair.source.splitlines()
    removed = [line for line in before if line not in after]
    assert [line.split("(")[0].strip() for line in removed] == ["def forward", "mhsa_0_output, _ = self.mhsa_0"]
    assert "        layernorm_0_output = self.layernorm_0(residual_0_output)  # after the first residual" in after
    assert "        # Embedding: token + position" in after
    order = [line.strip() for line in after]
    assert order.index("# node: output_0") + 1 == order.index("self.output_0 = nn.Linear(24, 61, bias=False)")


def test_the_diff_is_one_that_patch_takes(tmp_path: Path) -> None:
    repair, _, _ = repaired(tmp_path, "two_blocks_post_norm")
    (tmp_path / "change.diff").write_text(repair.diff, "utf-8")
    assert repair.diff.startswith("--- model.py\n+++ model.py (repaired)\n@@ ")
    done = subprocess.run(
        ["patch", "model.py", "change.diff"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "model.py").read_text("utf-8") == repair.source


# ---------------------------------------------------------------- models that are whole but see the future

PLAIN = '''"""Ein Modell – with text that is not ASCII."""
import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        {members}

    def forward(self, x):
        {body}


class CustomTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.pos = nn.Embedding(31, 16), nn.Embedding(24, 16)
        self.blocks = nn.ModuleList([Block(16), Block(16)])
        self.head = nn.Linear(16, 31)

    def forward(self, input_ids, attention_mask=None):
        x = self.tok(input_ids) + self.pos(torch.arange(input_ids.shape[1]))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)
'''
ATTENTION = "self.attn = nn.MultiheadAttention(d, 2, batch_first=True)"
MANUAL = "self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)"
LEAKS = {
    "attention": (ATTENTION, "return self.attn(x, x, x, need_weights=False)[0]  # é: bytes before the call"),
    "attention, several lines": (
        ATTENTION,
        "y, _ = self.attn(\n            x,\n            x,\n            x,\n        )\n        return y",
    ),
    "attention, keywords": (ATTENTION, "return self.attn(query=x, key=x, value=x, attn_mask=None)[0]"),
    "time first": ("self.attn = nn.MultiheadAttention(d, 2)", "return self.attn(x, x, x)[0]"),
    "time first, swapped": (
        "self.attn = nn.MultiheadAttention(d, 2)",
        "y = x.transpose(0, 1)\n        return self.attn(y, y, y)[0].transpose(0, 1)",
    ),
    "encoder layer": ("self.layer = nn.TransformerEncoderLayer(d, 2, 32, batch_first=True)", "return self.layer(x)"),
    "encoder layer, time first": ("self.layer = nn.TransformerEncoderLayer(d, 2, 32)", "return self.layer(x)"),
    "encoder": (
        "self.stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(d, 2, 32, batch_first=True), 2)",
        "return self.stack(x)",
    ),
    "layers in a loop": (
        "self.layers = nn.ModuleList([nn.TransformerEncoderLayer(d, 2, 32, batch_first=True) for _ in range(2)])",
        "for layer in self.layers:\n            x = layer(x)\n        return x",
    ),
    "sdpa": (MANUAL, "return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))"),
    "sdpa, false": (MANUAL, "return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), is_causal=False)"),
    "softmax": (MANUAL, "scores = self.q(x) @ self.k(x).mT / 4\n        return F.softmax(scores, dim=-1) @ self.v(x)"),
    "softmax method": (MANUAL, "return (torch.matmul(self.q(x), self.k(x).mT) / 4).softmax(-1) @ self.v(x)"),
}


def plain(case: str) -> str:
    members, body = LEAKS[case]
    return PLAIN.replace("{members}", members).replace("{body}", body)


ALIKE = (
    "attention, keywords",
    "time first, swapped",
    "encoder layer, time first",
    "encoder",
    "sdpa, false",
    "softmax method",
)


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.soak] if c in ALIKE else []) for c in LEAKS])
def test_a_leak_is_closed(case: str, tmp_path: Path) -> None:
    repair, original, fixed = repaired(tmp_path, plain(case))
    assert repair.needed
    assert fixed.state_dict().keys() == original.state_dict().keys()
    batch = ids(2, 8)
    longer, shorter = fixed(batch), torch.cat([fixed(batch[:, :t])[:, -1:] for t in range(1, 9)], 1)
    assert (longer - shorter).abs().max() <= 1e-5  # the prefix alone gives the same: an independent causal reference
    changed = [line for line in repair.diff.splitlines() if line.startswith("-") and not line.startswith("---")]
    assert 1 <= len(changed) <= 2
    assert ast.parse(repair.source)


CONVOLUTION = PLAIN.replace("{members}", ATTENTION + "\n        self.conv = nn.Conv1d(d, d, 3, padding=1)")


def test_a_convolution_that_leaks_is_padded_on_the_left(tmp_path: Path) -> None:
    body = "y = self.conv(x.transpose(1, 2)).transpose(1, 2)\n        return self.attn(y, y, y)[0]"
    repair, original, fixed = repaired(tmp_path, CONVOLUTION.replace("{body}", body))
    assert "line 14: self.conv is padded on the left alone: it saw 1 ahead" in repair.changes
    assert fixed.state_dict().keys() == original.state_dict().keys()
    batch = ids(1, 8)
    shorter = torch.cat([fixed(batch[:, :t])[:, -1:] for t in range(1, 9)], 1)
    assert (fixed(batch) - shorter).abs().max() <= 1e-5
    block = fixed.get_submodule("blocks.0")
    kept = {**vars(nn.Conv1d(16, 16, 3)), "_parameters": block.conv._parameters}
    bare = nn.Conv1d(16, 16, 3)
    bare.__dict__.update(kept)
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))
    y = bare(nn.functional.pad(x.mT, (2, 0))).mT  # the same weights, all their padding before the first token
    hidden = torch.ones(6, 6).triu(1).bool()
    assert (block(x) - block.attn(y, y, y, attn_mask=hidden)[0]).abs().max() <= 1e-6


def test_a_convolution_that_cannot_be_moved_is_named(tmp_path: Path) -> None:
    members = ATTENTION + "\n        self.conv = nn.Conv1d(d, d, 3, padding=1, padding_mode='circular')"
    body = "y = self.conv(x.transpose(1, 2)).transpose(1, 2)\n        return self.attn(y, y, y)[0]"
    with pytest.raises(CallError) as caught:
        repaired(tmp_path, PLAIN.replace("{members}", members).replace("{body}", body))
    text = str(caught.value)
    assert "blocks.0.conv (Conv1d)" in text
    assert "on the left alone" in text
    assert "give its attention a causal mask by hand" not in text


def test_an_encoder_decoder_that_leaks_is_not_said_to_be_fine(tmp_path: Path) -> None:
    body = "return self.attn(x, x, x)[0]"
    text = PLAIN.replace("{members}", ATTENTION).replace("{body}", body)
    text = text.replace("def forward(self, input_ids, attention_mask=None):", "def forward(self, src, tgt):")
    text = text.replace(
        "self.tok(input_ids) + self.pos(torch.arange(input_ids.shape[1]))",
        "self.tok(tgt) + self.tok(src).mean(1, True)",
    )
    with pytest.raises(CallError, match="causality: changing target token"):
        repaired(tmp_path, text)


def test_an_encoder_and_a_classifier_need_no_mask(tmp_path: Path) -> None:
    text = PLAIN.replace("{members}", ATTENTION).replace("{body}", "return self.attn(x, x, x)[0]")
    classes = text.replace("nn.Linear(16, 31)", "nn.Linear(16, 4)").replace("self.head(x)", "self.head(x.mean(1))")
    for name, whole in {"encoder": text.replace("self.head", "self.mlm_head"), "classifier": classes}.items():
        (tmp_path / name).mkdir()
        repair, _, _ = repaired(tmp_path / name, whole)
        assert (repair.needed, repair.findings[0].measured) == (False, "nothing to repair")
        assert repair.findings[0].reason == f"{'an' if name == 'encoder' else 'a'} {name} needs no causal mask"


def test_an_encoder_decoder_is_repaired(tmp_path: Path) -> None:
    repair, original, fixed = repaired(tmp_path, "encoder_decoder")
    assert list(inspect.signature(fixed.forward).parameters) == [
        "input_ids",
        "target_ids",
        "attention_mask",
        "target_mask",
    ]
    twin = EncoderDecoder().eval()
    twin.load_state_dict(original.state_dict())
    source, target = ids(2, 7), ids(2, 5)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    assert (fixed(source, target, mask) - twin(source, target, mask)).abs().max() <= 1e-6
    plan = infer_call_plan(fixed)
    assert (plan.family, plan.causal) == ("encoder_decoder", True)
    assert {f.name: f.verdict for f in repair.findings}["equal"] == "ok"


def test_a_plain_export_equals_its_twin_after_the_repair(tmp_path: Path) -> None:
    repair, original, fixed = repaired(tmp_path, "plain_without_mask")
    twin = PlainWithMask().eval()
    twin.load_state_dict(original.state_dict())
    batch, mask = ids(2, 6), torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
    assert (fixed(batch) - twin(batch)).abs().max() <= 1e-6
    assert (fixed(batch, mask) - twin(batch, mask))[mask.bool()].abs().max() <= 1e-6
    assert "  # self-attention" in repair.source
    assert any("meant as an encoder" in change for change in repair.changes)


def test_nothing_to_repair_says_so() -> None:
    repair = repair_model(
        load_model("example:gpt", config={"vocab_size": 32, "block_size": 8, "n_layer": 1, "n_embd": 8, "n_head": 1})
    )
    assert (repair.needed, repair.diff, repair.changes) == (False, "", ())
    assert repair.findings[0].measured == "nothing to repair"


def test_a_router_is_no_attention(tmp_path: Path) -> None:
    """A softmax over experts is not masked; the attention is."""
    members = MANUAL + "\n        self.gate = nn.Linear(d, 8)"
    body = (
        "gates = F.softmax(self.gate(x), dim=-1)\n"
        "        return F.softmax(self.q(x) @ self.k(x).mT, dim=-1) @ self.v(x) * gates.amax(-1, keepdim=True)"
    )
    repair, _, _ = repaired(tmp_path, PLAIN.replace("{members}", members).replace("{body}", body))
    assert "gates = F.softmax(self.gate(x), dim=-1)" in repair.source
    assert repair.source.count("masked_fill") == 1


def test_what_cannot_be_repaired_says_why(tmp_path: Path) -> None:
    with pytest.raises(CallError) as caught:
        repaired(
            tmp_path, PLAIN.replace("{members}", MANUAL).replace("{body}", "return self.q(x).mean(1, keepdim=True) + x")
        )
    text = str(caught.value)
    assert text.startswith("model.py could not be repaired")
    assert "no attention call without a mask was found" in text
    with pytest.raises(CallError, match="has no file that could be repaired"):
        repair_model(load_model(nn.Embedding(3, 4)))


def test_an_ambiguous_export_is_not_guessed(tmp_path: Path) -> None:
    text = (
        (EXPORTS / "one_block.py")
        .read_text("utf-8")
        .replace("self.ffn_0(layernorm_0_output)", "self.ffn_0(mhsa_0_output)")
    )
    text = text.replace(
        "        layernorm_0_output = self.layernorm_0(residual_0_output)  # after the first residual\n", ""
    )
    with pytest.raises(CallError, match="two sublayers could feed residual_1"):
        repaired(tmp_path, text)


def test_siblings_and_configuration_come_along(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text("WIDTH = 16\n", "utf-8")
    (tmp_path / "config.json").write_text('{"vocab": 31}', "utf-8")
    text = plain("attention").replace("import torch\n", "import torch\nfrom parts import WIDTH\n", 1)
    text = text.replace("def __init__(self):", "def __init__(self, vocab):").replace(
        "nn.Embedding(31, 16)", "nn.Embedding(vocab, WIDTH)"
    )
    text = text.replace("nn.Linear(16, 31)", "nn.Linear(16, vocab)")
    repair, _, fixed = repaired(tmp_path, text)
    assert repair.needed
    assert infer_call_plan(fixed).vocab_size == 31


def test_a_repair_is_saved_without_losing_anything(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    text = (EXPORTS / "one_block.py").read_text("utf-8")
    file.write_text(text, "utf-8")
    repair = repair_model(load_model(file))
    assert file.read_text("utf-8") == text  # nothing is written unasked
    with pytest.raises(SettingsError, match="exists"):
        save_repair(repair, file, own=True)
    with pytest.raises(SettingsError, match="no file of yours"):
        save_repair(repair, None, own=False)
    save_repair(repair, None, own=True)
    save_repair(repair, None, own=True)
    assert file.read_text("utf-8") == repair.source
    assert (tmp_path / "model.py.bak").read_text("utf-8") == text
    assert (tmp_path / "model.py.bak2").read_text("utf-8") == repair.source


TURNED_ROUND = """
import torch
from torch import nn

class TransformerLM(nn.Module):
    def __init__(self, vocab_size=50, d=16):
        super().__init__()
        self.emb, self.mix, self.head = nn.Embedding(vocab_size, d), nn.Linear(d, 3 * d), nn.Linear(d, vocab_size)

    def forward(self, x):
        T, h = x.size(1), self.emb(x)
        mask = torch.zeros(T, T).masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
        q, k, v = self.mix(h).chunk(3, -1)
        scores = (q @ k.transpose(1, 2)).masked_fill(mask == 0, -1e9)
        return self.head(h + scores.softmax(-1) @ v)
"""


def test_a_mask_that_is_the_wrong_way_round_gets_no_second_one(tmp_path: Path) -> None:
    """With both, every weight would be the same: nothing of the attention could be trained."""
    (tmp_path / "model.py").write_text(TURNED_ROUND)
    with pytest.raises(CallError, match=r"its mask is the wrong way round(?s:.*)turn it where it is made or read"):
        repair_model(load_model(tmp_path / "model.py"))
    (tmp_path / "model.py").write_text(TURNED_ROUND.replace("mask == 0", "mask != 0"))
    assert not repair_model(load_model(tmp_path / "model.py")).needed

"""The example against a naive float64 implementation, its size against the published count, its initialisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from anyformer.models.example_gpt import GPT


def naive(weights: dict[str, np.ndarray], ids: list[int], n_layer: int, n_head: int) -> np.ndarray:
    """Logits (T, V) of one sequence: loops over heads and positions, numpy only."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return y * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    x = np.stack([weights["tokens.weight"][i] + weights["positions.weight"][t] for t, i in enumerate(ids)])
    T, D = x.shape
    K = D // n_head
    for layer in range(n_layer):
        q, k, v = np.split(linear(norm(x, f"blocks.{layer}.norm_attn"), f"blocks.{layer}.attn.qkv"), 3, axis=-1)
        heads = np.zeros_like(x)
        for h in range(n_head):
            part = slice(h * K, (h + 1) * K)
            for t in range(T):
                scores = np.array([q[t, part] @ k[s, part] / math.sqrt(K) for s in range(t + 1)])
                attention = np.exp(scores - scores.max())
                attention /= attention.sum()
                heads[t, part] = sum(a * v[s, part] for s, a in enumerate(attention))
        x = x + linear(heads, f"blocks.{layer}.attn.proj")
        hidden = linear(norm(x, f"blocks.{layer}.norm_mlp"), f"blocks.{layer}.up")
        hidden = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + linear(hidden, f"blocks.{layer}.down")
    return norm(x, "norm") @ weights["tokens.weight"].T


@pytest.mark.parametrize("bias", [False, True])
def test_logits_equal_a_naive_implementation(bias):
    torch.manual_seed(0)
    model = GPT(vocab_size=17, block_size=9, n_layer=2, n_head=3, n_embd=12, bias=bias).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the initialisation, where every part counts
            parameter.add_(torch.randn_like(parameter) * 0.3)
    ids = [3, 16, 0, 3, 9, 9, 1]
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    expected = naive(weights, ids, n_layer=2, n_head=3)
    got = model(torch.tensor([ids])).detach().numpy()[0]
    assert np.abs(got - expected).max() <= 1e-12 * np.abs(expected).max()


def test_gpt2_has_exactly_the_published_number_of_parameters():
    with torch.device("meta"):
        model = GPT(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768, bias=True)
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_gpt2_computes_what_the_library_does():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=16, n_layer=2, n_head=2, n_embd=8, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0
    )
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    ours = GPT(vocab_size=31, block_size=16, n_layer=2, n_head=2, n_embd=8, bias=True).double().eval()
    renames = (("transformer.", ""), ("wte", "tokens"), ("wpe", "positions"), ("h.", "blocks."), ("ln_1", "norm_attn"))
    renames += (("ln_2", "norm_mlp"), ("ln_f", "norm"), ("attn.c_attn", "attn.qkv"), ("attn.c_proj", "attn.proj"))
    renames += (("mlp.c_fc", "up"), ("mlp.c_proj", "down"), ("lm_head", "head"))
    state = {}
    for name, tensor in theirs.state_dict().items():
        transposed = ".c_" in name and name.endswith("weight")  # their Conv1D keeps weights transposed
        for old, new in renames:
            name = name.replace(old, new)
        state[name] = tensor.T if transposed else tensor
    ours.load_state_dict(state)
    ids = torch.randint(0, 31, (2, 16))
    with torch.no_grad():
        expected = theirs(ids).logits
        assert (ours(ids) - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize(("width", "expected"), [(768, 0.02), (192, 0.04), (48, 0.08)])
def test_initialisation_is_gpt2s_at_its_width_and_keeps_sums_alike_at_others(width: int, expected: float):
    torch.manual_seed(0)
    model = GPT(vocab_size=500, n_layer=8, n_embd=width, bias=True)
    assert model.tokens.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert model.blocks[0].up.weight.std().item() == pytest.approx(expected, rel=0.02)
    for name in ("attn.proj", "down"):
        std = model.blocks[3].get_submodule(name).weight.std().item()
        assert std == pytest.approx(expected / math.sqrt(16), rel=0.03)
    assert not model.blocks[3].up.bias.any()
    assert torch.equal(model.norm.weight, torch.ones(width))
    assert model.head.weight is model.tokens.weight


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = GPT(vocab_size=13, block_size=8, n_layer=1, n_head=2, n_embd=8, dropout=0.5)
    ids = torch.randint(0, 13, (2, 8))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_too_long_and_indivisible_are_refused_in_words():
    with pytest.raises(ValueError, match="9 tokens is longer than block_size 8"):
        GPT(vocab_size=13, block_size=8, n_layer=1, n_head=2, n_embd=8)(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="n_embd 9 is not a multiple of n_head 2"):
        GPT(n_embd=9, n_head=2)

"""Right models that the checks must let pass: the hosts, small transformers configurations, models of the zoo."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from anyformer.models.source import LoadedModel, load_model

_SIZES: dict[str, int] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_GPT = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
_BART = {"vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, **_HEADS}
_OPT = {"num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 64}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _SIZES),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED),
    "mistral, sliding window": ("MistralForCausalLM", "MistralConfig", {**_GROUPED, "sliding_window": 8}),
    "mixtral, mixture of experts": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "bloom, ALiBi": (
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ),
    "mpt, ALiBi": ("MptForCausalLM", "MptConfig", {"vocab_size": 96, "d_model": 32, "n_layers": 2, "n_heads": 4}),
    "opt": ("OPTForCausalLM", "OPTConfig", {"vocab_size": 96, "hidden_size": 32, "word_embed_proj_dim": 32, **_OPT}),
    "falcon, multi-query": ("FalconForCausalLM", "FalconConfig", {k: _SIZES[k] for k in list(_SIZES)[:4]}),
    "gemma 2, soft caps": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {**_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8},
    ),
    "phi, parallel": ("PhiForCausalLM", "PhiConfig", _SIZES),
    "qwen 3, query norm": ("Qwen3ForCausalLM", "Qwen3Config", {**_GROUPED, "head_dim": 8}),
    "codegen": ("CodeGenForCausalLM", "CodeGenConfig", {**_GPT, "rotary_dim": 4}),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", _BART),
    # as its published models have it: else sinusoids of size 1 drown embeddings of size 0.02
    "marian": (
        "MarianMTModel",
        "MarianConfig",
        {**_BART, "pad_token_id": 0, "decoder_start_token_id": 0, "scale_embedding": True},
    ),
    "bert": ("BertForMaskedLM", "BertConfig", _SIZES),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", {**_SIZES, "max_position_embeddings": 66}),
    "albert, one block": ("AlbertForMaskedLM", "AlbertConfig", {**_SIZES, "embedding_size": 16}),
    "deberta, relative": (
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        {**_SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "bert, classifier": ("BertForSequenceClassification", "BertConfig", _SIZES),
    "mamba": ("MambaForCausalLM", "MambaConfig", {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}),
    "rwkv": ("RwkvForCausalLM", "RwkvConfig", {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}),
}
_ZOO = ("rnn_hidden", "ssm_scan", "conv_causal", "linear_attention", "out_moe", "seq2seq_methods", "classifier_mean")
_HERE = Path(__file__).parent


def good_models() -> dict[str, Callable[[], nn.Module | LoadedModel]]:
    """Name → how it is built, with weights of the present random state (files: of the seed that load_model sets)."""
    found: dict[str, Callable[[], nn.Module | LoadedModel]] = {}
    for path in sorted((_HERE / "hosts").glob("*.py")):
        found[f"host {path.stem}"] = lambda path=path: load_model(path)
    for name, (cls, config, sizes) in _TRANSFORMERS.items():
        found[name] = lambda cls=cls, config=config, sizes=sizes: _from_transformers(cls, config, sizes)
    for name in _ZOO:
        path = _HERE.parents[1] / "tests" / "zoo" / f"{name}.py"
        found[f"zoo {name}"] = lambda path=path: load_model(path)
    return found | {f"held out {name}": build for name, build in _held_out().items()}


def _held_out() -> dict[str, Callable[[], nn.Module]]:
    """Those written by another hand, beside the mistakes that are held out."""
    path = _HERE / "heldout" / "good.py"
    spec = importlib.util.spec_from_file_location("held_out_good", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its classes are looked up there
    spec.loader.exec_module(module)
    found: dict[str, Callable[[], nn.Module]] = module.good_models()
    return found


def _from_transformers(cls: str, config: str, sizes: dict[str, Any]) -> nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    return getattr(transformers, cls)(getattr(transformers, config)(**sizes))

"""Whether a module that looks both ways is meant to: what speaks for an encoder, and what for a decoder."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from anyformer.models.calls.names import hint, parameters_of

_ENCODER = re.compile(
    r"[bB]ert(?![a-z])|BERT(LM)?|[eE]lectra|ELECTRA|Encoder|encoder_only|MLM|Bidirectional"
    r"|[mM]asked_?L(M|anguage(_?[mM]odel(ing)?)?)"
    r"|[cC]lassifier|Classification"
)
_DECODER = re.compile(
    r"GPT|gpt|Decoder|decoder|Causal|causal_lm|LanguageModel|language_model|[lL]lama|LLaMA|[mM]istral|Autoregressive"
    r"|AutoReg|[bB]igram|Mamba|RWKV|Qwen|Gemma"
)
_LM = re.compile(r"LM(?![a-z])")
"""Of a decoder, where nothing else in the name speaks of an encoder."""
_MLM_HEAD = re.compile(r"mlm(_.*)?|.*_mlm|mask_?lm|cls_predictions|masked_lm.*|nsp.*|next_sentence.*|pooler")


@dataclass(frozen=True)
class Evidence:
    """Reasons, each in a few words."""

    encoder: tuple[str, ...]
    decoder: tuple[str, ...]

    @property
    def says_encoder(self) -> bool:
        """Something speaks for an encoder and nothing for a decoder."""
        return bool(self.encoder) and not self.decoder


def gather(module: nn.Module) -> Evidence:
    """From names, arguments, submodules and buffers; nothing is run."""
    module = getattr(module, "_orig_mod", module)
    encoder: list[str] = []
    decoder: list[str] = []
    _by_class(module, encoder, decoder)
    for parameter in parameters_of(module):
        kind = hint(parameter.name)
        if kind == "segments":
            encoder.append(f"argument {parameter.name}")
        if kind == "flag" or "causal" in parameter.name:
            decoder.append(f"argument {parameter.name}")
    encoder += [f"submodule {n}" for n, _ in module.named_children() if _MLM_HEAD.fullmatch(n.lower())]
    if callable(getattr(module, "generate", None)) and not type(module).__module__.startswith("transformers"):
        decoder.append("a generate method")
    decoder += [f"the causal buffer {name}" for name, buffer in module.named_buffers() if is_tril(buffer)][:1]
    return Evidence(tuple(encoder), tuple(decoder))


def _by_class(module: nn.Module, encoder: list[str], decoder: list[str]) -> None:
    own = [c.__name__ for c in type(module).__mro__ if issubclass(c, nn.Module) and _is_users(c)]
    under = sorted({type(m).__name__ for m in module.modules() if m is not module and _is_users(type(m))})
    top = own[:1]
    words = [*[("class", n) for n in own], *[("class", n) for n in under]]
    if not (any(_ENCODER.search(n) for n in top) or any(_DECODER.search(n) or _LM.search(n) for n in top)):
        words += [("file", _file(module))]
    else:
        words = [("class", n) for n in own]  # the model's own name outweighs those of its parts
    for where, name in words:
        if _ENCODER.search(name):
            encoder.append(f"{where} {name}")
        if _DECODER.search(_ENCODER.sub("", name)) or (_LM.search(name) and not _ENCODER.search(name)):
            decoder.append(f"{where} {name}")


def _is_users(cls: type) -> bool:
    return not cls.__module__.startswith("torch.") and cls is not nn.Module


def _file(module: nn.Module) -> str:
    try:
        stem = Path(inspect.getfile(type(module))).stem
    except (OSError, TypeError):
        return ""
    return "" if stem.startswith("test_") else stem


def is_tril(buffer: Tensor) -> bool:
    """Whether a buffer is a causal mask: square, and one triangle is filled alone."""
    if buffer.dim() < 2 or buffer.shape[-1] != buffer.shape[-2] or buffer.shape[-1] < 3 or buffer.numel() > 10**8:
        return False
    if buffer.numel() != buffer.shape[-1] ** 2:
        return False
    corner = buffer.detach().reshape(buffer.shape[-2:])[:16, :16]
    marks = torch.isinf(corner) if corner.is_floating_point() and bool(torch.isinf(corner).any()) else corner != 0
    n = len(marks)
    ones = torch.ones(n, n, dtype=torch.bool, device=marks.device)
    forms = (ones.tril(), ones.triu(), ones.tril(-1), ones.triu(1))
    return any(torch.equal(marks, form) for form in forms)

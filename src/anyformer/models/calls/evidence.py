"""Whether a module that looks both ways is meant to: what speaks for an encoder, and what for a decoder."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from anyformer.core.findings import Finding
from anyformer.models.calls.names import held, hint, parameters_of
from anyformer.models.calls.options import source_of

_ENCODER = re.compile(
    r"[bB]ert(?![a-z])|BERT(LM)?|[eE]lectra|ELECTRA|Encoder|encoder_only|MLM|Bidirectional"
    r"|[mM]asked_?L(M|anguage(_?[mM]odel(ing)?)?)"
    r"|[cC]lassifier|Classification"
    r"|ESM\d?(?![a-z])|Esm[A-Z\d]|XLMR?(?![a-z])|FNet|[rR]o[fF]ormer|[lL]ongformer|[bB]ig_?[bB]ird|[nN]ystromformer|MPNet"
    r"|ERNIE|Ernie"
)
_MASKED = re.compile(
    r"(?<![a-z])[bB]ert(?![a-z])|(ro|al|distil|de|tiny|mini|baby)bert(?![a-z])|BERT|(?<![a-zA-Z])MLM(?![a-z])|[mM]asked_?L"
    r"|(?<=[a-z])MLM(?![a-z])|^[eE]lectra|ELECTRA"
)
_MASKED_HEAD = re.compile(r"mlm(_.*)?|.*_mlm|mask_?lm|masked_?lm.*|cls_predictions")
_NEITHER = re.compile(
    r"[aA]uto_?[eE]ncod(er|ing)|VAE(?![a-z])|[dD]iffusion|LLaDA|MDLM|SEDD|D3PM|MaskGIT|[dD]enois(er|ing)"
)
"""They see both sides for another objective: writing their own input again, or filling in a text by steps."""
MASK_ID = re.compile(r"mask_?(token)?_?(id|idx|index)|mask_token")
"""What an encoder that learns from hidden tokens keeps."""
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
    neither: tuple[str, ...] = ()
    """For an autoencoder or a diffusion model: masked language modelling is not what it is for."""

    @property
    def says_encoder(self) -> bool:
        """Something speaks for an encoder and nothing for a decoder or another objective."""
        return bool(self.encoder) and not self.decoder and not self.neither


def says_masked(module: nn.Module, evidence: Evidence) -> str:
    """What, beside its own name, says that it is a masked language model; "" where it does not say so."""
    module = getattr(module, "_orig_mod", module)
    decodes = getattr(held(module, "config"), "is_decoder", False) is True
    if not evidence.says_encoder or decodes or not _MASKED.search(type(module).__name__):
        return ""
    heads = [f"submodule {n}" for n, _ in module.named_children() if _MASKED_HEAD.fullmatch(n.lower())]
    return next(iter([*heads, *(e for e in evidence.encoder if e.startswith("its "))]), "")


def sees_nothing_later(module: nn.Module, sign: str) -> Finding:
    """Of a masked language model that is causal, which is not what it says it is."""
    names = f"class {type(module).__name__}, {sign}"
    text = f"no position sees a later token, yet it speaks of masked language modelling: {names}"
    why = "a mask of its own hides them, by mistake perhaps; if it is meant so: --objective causal"
    return Finding("family", "fail", text, "an encoder sees both sides", why)


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
    encoder += [f"its {name}" for name in _mask_ids(module)][:1]
    names = [c.__name__ for c in type(module).__mro__ if issubclass(c, nn.Module) and _is_users(c)]
    neither = [f"class {name}" for name in names if _NEITHER.search(name)]
    return Evidence(tuple(encoder), tuple(decoder), tuple(neither))


def _mask_ids(module: nn.Module) -> list[str]:
    """Ids of a mask token that the module keeps, or that its forward reads."""
    kept = [
        name for part in module.modules() for name in vars(part) if MASK_ID.fullmatch(name) or name == "token_dropout"
    ]
    read = [
        name for name in re.findall(r"\.(\w+)", source_of(module)) if MASK_ID.fullmatch(name) or name == "token_dropout"
    ]
    return list(dict.fromkeys([*kept, *read]))


def _by_class(module: nn.Module, encoder: list[str], decoder: list[str]) -> None:
    own = [c.__name__ for c in type(module).__mro__ if issubclass(c, nn.Module) and _is_users(c)]
    under = sorted({type(m).__name__ for m in module.modules() if m is not module and _is_users(type(m))})
    top = [_NEITHER.sub("", n) for n in own[:1]]
    words = [*[("class", n) for n in own], *[("class", n) for n in under]]
    if not (any(_ENCODER.search(n) for n in top) or any(_DECODER.search(n) or _LM.search(n) for n in top)):
        words += [("file", file_stem(module))]
    else:
        words = [("class", n) for n in own]  # the model's own name outweighs those of its parts
    for where, written in words:
        name = _NEITHER.sub("", written)
        if _ENCODER.search(name):
            encoder.append(f"{where} {written}")
        if _DECODER.search(_ENCODER.sub("", name)) or (_LM.search(name) and not _ENCODER.search(name)):
            decoder.append(f"{where} {written}")


def _is_users(cls: type) -> bool:
    return not cls.__module__.startswith("torch.") and cls is not nn.Module


def file_stem(module: nn.Module) -> str:
    """Name of the file in which its class is written, without .py; "" where there is none."""
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

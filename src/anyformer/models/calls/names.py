"""What the names of parameters hint at. Hints order the candidates; what the module does decides."""

from __future__ import annotations

import inspect
import re
from typing import Any, Literal

from torch import nn

from anyformer.models.signature import forward_parameters

# fmt: off
Hint = Literal[
    "tokens", "targets", "decoder", "mask", "target_mask", "memory_mask", "flag", "positions", "segments", "lengths",
    "padding_id", "start", "cache", "memory", "switch", "unknown",
]
# fmt: on

TOKENS = (
    "input_ids",
    "idx",
    "tokens",
    "input_tokens",
    "token_ids",
    "ids",
    "src_ids",
    "src",
    "source",
    "encoder_input_ids",
    "encoder_input",
    "enc_input",
    "enc_inputs",
    "inputs",
    "input",
    "inp",
    "x",
    "seq",
    "sequence",
    "input_seq",
)
TARGETS = (
    "targets",
    "labels",
    "target",
    "label",
    "y",
    "target_ids",
    "target_seq",
    "lm_labels",
    "mlm_labels",
    "masked_lm_labels",
)
DECODER = re.compile(
    r"decoder_(input(_?ids|s)?|ids|tokens)|dec_(inputs?|in|ids|x|tokens)|tgt(_?(ids|tokens|seq|input|in|inp|x))?"
    r"|trg(_?(ids|seq|input))?|target_(tokens|input|in|inp)|prev_output_tokens|y_?in(put)?|x_dec|output_tokens"
)
"""A decoder's own input. target, targets, y and labels may be one, too: they are tried after the other reading."""
MAYBE_DECODER = ("target", "targets", "y", "target_ids", "target_seq", "labels", "outputs", "z")
_OF_TARGET = frozenset(("tgt", "trg", "tar", "targ", "target", "targets", "dec", "decoder"))
_OF_SOURCE = frozenset(("src", "source", "sources", "enc", "encoder"))
# fmt: off
OF_IDS = frozenset((
    "id", "ids", "idx", "idxs", "index", "indices", "token", "tokens", "in", "inp", "inps", "input", "inputs", "seq",
    "seqs", "sequence", "sequences", "batch", "text", "texts", "sentence", "sentences", "sent", "word", "words", "x",
    "sents", "tensor", "data", "padded", "shifted", "right",
))
# fmt: on
"""Words that names of ids are put together from: trg_token_ids_batch, tarInput, encoder_tokens."""
PAD = re.compile(
    r"((src|source|tgt|trg|target|enc|encoder|dec|decoder|key|x|y|input|inp|batch|is|non)_)*(pads?|is_?pad|non_?pad)"
)
"""A name that says no more than "padding": a mask, or the padding's id."""
_RULES: tuple[tuple[Hint, str], ...] = (
    (
        "switch",
        r"(.*_)?head_mask|layer_mask|expert_mask|mask_token.*|(image|img|vision|visual|audio|video|pixel)s?_?mask",
    ),
    ("tokens", r"masked_?(inputs?|((input|token)_?)?ids|tokens?|seqs?|sequences?|items?|texts?|sentences?|x|src)"),
    ("padding_id", r"(\w+_)?pad(ding)?_?(token)?_?(id|idx|ix|index|token|tok)"),
    ("positions", r"mask(ed)?_?(lm_)?(pos|positions?|idx|index|indices)|(pred|predict|mlm)(ion)?_?(pos|positions?)"),
    ("memory_mask", r"(memory|mem|cross)_(.*mask|pad|padding)"),
    ("memory_mask", r"((src|enc)_(tgt|trg|dec)|(tgt|trg|dec)_(src|enc))_(.*mask|pad|padding)"),
    ("target_mask", r"(tgt|trg|target|dec|decoder|d|y|look_?ahead|subsequent)_.*mask|decoder_?mask"),
    ("target_mask", r"(.*_)?(tgt|trg|target)_mask|mask_(of_)?(tgt|trg|target|dec|decoder|y)"),
    ("target_mask", r"combined?_?mask"),
    ("target_mask", r"(look_?ahead|causal|no_?pea?k|no_?future|future|foresee|triangular|tri(l|u))_?mask"),
    ("target_mask", r"(tgt|trg|target|dec|decoder)_(is_)?pad(s|ding|ded)?"),
    ("mask", rf".*mask.*|attn_bias|attention_bias|.*padding|{PAD.pattern}"),
    ("flag", r"(is_|use_)?(causal|autoregressive)|apply_causal.*"),
    ("start", r"start_?(pos|index|idx|position)|(pos_?)?offset|past_(len|length)|cache_len\w*|prefix_len"),
    ("segments", r"(doc(ument)?|packed)s?_?(ids?|idx|index|indices|numbers?)|seq(uence)?_(idx|index)"),
    (
        "segments",
        r"token_type(_?ids|s)?|(segment|seg)(_?(ids?|idx|info|inputs?|labels?|tokens?|types?|embeddings?|embeds?|tensors?))?s?|type_ids",
    ),
    (
        "positions",
        r"(src|source|enc|encoder|tgt|trg|target|dec|decoder)_pos(ition)?(_?(ids?|itions?|idx|indices))?s?",
    ),
    ("positions", r"(input_)?pos|pos(ition)?(_?(ids?|itions?|idx|indices))?|positions|cache_position"),
    ("lengths", r"(?!.*pad)(.*len(gth)?s?|.*_lens|len_\w+)"),  # pad_len counts what is padding, perhaps
    ("switch", r"(use|return|update|need|output)_(.*cache|hidden_states|past\w*|kvs?)"),
    ("memory", r"enc(oder)?_(hidden_)?states?|mem"),
    ("cache", r".*(cache|past_key|past_kv|mems|state).*|hiddens?|past|h_?0|h|hx|hc|h_c|prev_h(idden)?|presents?"),
    ("memory", r"memory|.*enc(oder)?_(out|output|outputs|hidden|hidden_states)|context|encoded|enc"),
    ("switch", r"is_(train|test|eval|infer|sampl|generat)\w*"),
    ("switch", r"return_.*|output_.*|use_.*|train(ing)?|deterministic|inference|verbose|.*_only|need_.*|mode|debug"),
)


def hint(name: str) -> Hint:
    """What a parameter of this name usually takes."""
    written, name = name, name.lower().lstrip("_")
    if DECODER.fullmatch(name):
        return "decoder"
    if name in TARGETS:
        return "targets"
    if name in TOKENS:
        return "tokens"
    return next((kind for kind, pattern in _RULES if re.fullmatch(pattern, name)), None) or _by_words(written)


def _by_words(name: str) -> Hint:
    """By the words of a name that no rule knows, where each of them speaks of ids or of whose they are."""
    words = set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")) - {""}
    if not words or not words <= _OF_TARGET | _OF_SOURCE | OF_IDS:
        return "unknown"
    if words & _OF_TARGET:
        return "unknown" if words & _OF_SOURCE else "decoder"
    return "tokens" if words & _OF_SOURCE else "unknown"


_CAUSAL_SWITCH = re.compile(r"future|causal|autoreg|unidirectional|left_to_right|decoder|(^|_)lm(_|$)|look_?ahead")


def causal_switch(parameter: inspect.Parameter) -> bool:
    """Whether a parameter may be what makes a module causal when it is True, or False."""
    if hint(parameter.name) == "flag":
        return True
    return isinstance(parameter.default, bool) and bool(_CAUSAL_SWITCH.search(parameter.name.lower()))


def held(module: nn.Module, name: str) -> Any:
    """A module's attribute; None where it has none, or a property of that name raises."""
    try:
        return getattr(module, name, None)
    except Exception:  # noqa: BLE001  (a stranger's property may raise anything: it then holds no number)
        return None


def parameters_of(module: nn.Module) -> list[inspect.Parameter]:
    """forward's parameters without ``**kwargs``."""
    return [p for p in forward_parameters(module) if p.kind is not inspect.Parameter.VAR_KEYWORD]


def required(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """Those without a default."""
    return [p for p in parameters if p.default is p.empty and p.kind is not inspect.Parameter.VAR_POSITIONAL]


def token_candidates(parameters: list[inspect.Parameter]) -> list[str]:
    """Parameters that could take the ids: by name first, then by position; with a leading * if by position only."""
    usable = [p for p in parameters if hint(p.name) in ("tokens", "unknown", "segments", "positions", "memory")]
    hinted = [p for name in TOKENS for p in usable if p.name.lower() == name]
    hinted += [p for p in usable if hint(p.name) == "tokens" and p not in hinted]
    others = [p for p in usable if p not in hinted and (p.default is p.empty)]
    unknown_first = sorted(others, key=lambda p: hint(p.name) != "unknown")
    # a required parameter that nobody else would take comes before an optional one with a known name
    ordered = sorted([*hinted, *unknown_first], key=lambda p: p.default is not p.empty)
    ordered += [p for p in usable if p not in ordered and p.default is None and _takes_tensor(p)]
    if not ordered:
        ordered = [p for p in parameters if hint(p.name) in ("decoder", "targets") and p.default is p.empty]
    needed = required(parameters)
    if len(needed) == 1 and hint(needed[0].name) == "decoder" and needed[0] not in ordered:
        ordered.insert(0, needed[0])  # the decoder's input alone is needed: the rest may serve another model
    return [token_name(p) for p in ordered]


def _takes_tensor(parameter: inspect.Parameter) -> bool:
    """Whether an optional parameter of an unknown name may take ids."""
    annotation = "" if parameter.annotation is parameter.empty else inspect.formatannotation(parameter.annotation)
    return hint(parameter.name) == "unknown" and (not annotation or "Tensor" in annotation)


def token_name(parameter: inspect.Parameter) -> str:
    """As CallPlan.token_arg holds it."""
    by_position = parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    return f"*{parameter.name}" if by_position else parameter.name

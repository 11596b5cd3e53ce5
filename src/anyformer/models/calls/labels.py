"""Whether the numbers of each position are for tokens, or labels of its token (part of speech, entity).

Where there are as many labels as tokens, shapes cannot tell: names, sizes and the module's own loss have to.
B batch, T time, V width of the logits.
"""

from __future__ import annotations

import inspect
import re
from typing import Literal

from torch import nn

from anyformer.core.findings import Finding
from anyformer.models.calls.evidence import Evidence, file_stem
from anyformer.models.calls.names import held, parameters_of
from anyformer.models.calls.overrides import Stated
from anyformer.models.calls.ownloss import OwnLoss
from anyformer.models.calls.probing import Prober
from anyformer.models.plan import CallPlan

_TAGS = re.compile(
    r"(^|_)(pos_?)?tags?(set)?(_|$)|hidden2tag|(^|_)ner(_|$)|(^|_)slots?(_|$)|token_?classif|(^|_)bio(_|$)|tagger|tagging",
    re.IGNORECASE,
)
_TAG_COUNTS = re.compile(r"(num|n)_?(tags|labels|slots|classes|entities)|tag_?set_?size|tagset", re.IGNORECASE)
_TAG_TABLES = re.compile(
    r"(ix|idx|id|i|int)?_?(2|to)?_?(tag|label|ner|slot)s?_?(2|to|_)?_?(ix|idx|id|i|int|vocab)?", re.IGNORECASE
)
_LABELS = re.compile(r"(^|_)(classifier|labels?)(_|$)", re.IGNORECASE)
_CLASS = re.compile(r"Tagger|NER(?![a-z])|TokenClassif|SlotFill|SequenceLabel|Seq(uence)?Tag|CRF(?![a-z])")
_PADDED_TO = 256  # a vocabulary is rounded up to a multiple of 8, 64, 128 or, sharded, of more
_MOST_TAGS = 512
"""Sets of tags are smaller: 17 (universal parts of speech) to 400 or so."""
_OUT_SIZE = re.compile(
    r"out(put)?s?(_?(dim|size|features|channels|classes))?|d_?out|c_?out|n_?out(puts)?|num_?outputs?|target_?size", re.I
)
_TOKENS_SIZE = re.compile(r"vocab|token|char|alphabet|symbols|n_?words|words", re.IGNORECASE)
_LM_HEAD = re.compile(
    r"lm_?head|generator|vocab|unembed|to_logits|token|decoder|(^|_)lm(_|$)|mlm|embed_out", re.IGNORECASE
)


def tagger_finding(prober: Prober, plan: CallPlan, said: Stated, own: OwnLoss, evidence: Evidence) -> list[Finding]:
    """Fail where something says that these are labels of tokens; warn where nothing says that they are tokens."""
    rows = plan.embedding_rows
    if plan.family not in ("decoder", "encoder") or rows is None or plan.head is not None:
        return []
    V = plan.vocab_size
    named = _named(prober.module, V, rows)
    if said.family is not None:
        why = "stated in anyformer.yaml: tokens they are"
        return [Finding("labels", "warn", f"{V:,} labels per token? {named[0]}", reason=why)] if named else []
    if named:
        why = f"{named[0]} says so: labels of tokens; trained as a language model it would predict tokens as labels"
        return [Finding("labels", "fail", f"{V:,} labels per token", "one number per token of the vocabulary", why)]
    if rows < V:
        padded = any(V % m == 0 and V - rows < m for m in (8, 16, 32, 64, 128, _PADDED_TO)) or rows * 1.02 + 8 >= V
        verdict: Literal["warn", "fail"] = "warn" if padded else "fail"
        why = f"ids from {rows:,} on can be predicted but not read" if padded else "labels of tokens, perhaps"
        return [Finding("labels", verdict, f"{V:,} numbers, {rows:,} embedding rows", "as many", why)]
    return _undecided(prober.module, plan, own, evidence)


def _named(module: nn.Module, V: int, rows: int) -> list[str]:
    """What is named after tags: the head, a count, a table of them, an argument, the class, the file."""
    heads = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and part.out_features == V and part.in_features != V
    ]
    kept = [
        (key, value)
        for part in module.modules()
        if not type(part).__module__.startswith("torch.")  # what the library names says nothing of this model
        for key, value in {**vars(part), **getattr(held(part, "config"), "__dict__", {})}.items()
    ]
    said = [name for name in heads if any(_TAGS.search(step) for step in name.split("."))]
    # a head of as many "classes" as there are tokens, and more than any set of tags has, is one over tokens
    counts = [k for k, v in kept if type(v) is int and v == V and _TAG_COUNTS.fullmatch(k)]
    said += [f"{k} = {V}" for k in counts if rows != V or V <= _MOST_TAGS or not k.lower().endswith("classes")]
    said += [k for k, v in kept if isinstance(v, dict) and len(v) == V and _TAG_TABLES.fullmatch(k)]
    said += [] if rows == V else [name for name in heads if any(_LABELS.search(step) for step in name.split("."))]
    said += [f"argument {p.name}" for p in parameters_of(module) if _TAGS.search(p.name)]
    said += [f"class {type(m).__name__}" for m in module.modules() if _CLASS.search(type(m).__name__)]
    said += [f"file {stem}" for stem in [file_stem(module)] if _TAGS.search(stem)]
    return said


def _undecided(module: nn.Module, plan: CallPlan, own: OwnLoss, evidence: Evidence) -> list[Finding]:
    """As many numbers as tokens, and no name: what speaks for labels, unless something says that they are tokens."""
    signs = []
    if any(isinstance(m, nn.RNNBase) and m.bidirectional for m in module.modules()):
        signs.append("a recurrent layer that reads both ways")
    if own.in_place or any(f.name == "own loss" and "trains a copy" in f.measured for f in own.findings):
        signs.append("its own loss compares logits[t] with label t, unshifted")
    kind = type(getattr(module, "_orig_mod", module)).__name__
    if re.search(r"Classifi", kind) and not evidence.decoder:
        signs.append(f"class {kind}")
    sizes = _sizes(module)
    if any(_OUT_SIZE.fullmatch(name) for name in sizes):
        signs.append("a size of its own for what comes out")
    tokens = _says_tokens(module, plan, evidence, sizes)
    measured = f"{plan.vocab_size:,} numbers per token, as many as ids"
    if len(signs) > 1 and not tokens:
        why = f"{' and '.join(signs[:3])}: labels of tokens (a tagger), not the next token"
        why += f"; were they tokens after all, anyformer.yaml settles it: call: family: {plan.family}"
        return [Finding("labels", "fail", measured, "something that says they are tokens", why)]
    if tokens or plan.vocab_size > _MOST_TAGS:
        return []
    sign = f"{signs[0]}, and nothing" if signs else "nothing"
    why = f"{sign} says whether they are tokens or labels of tokens; it is trained on tokens"
    return [Finding("labels", "warn", measured, "a name that says it", why)]


def _says_tokens(module: nn.Module, plan: CallPlan, evidence: Evidence, sizes: list[str]) -> bool:
    """A language model by its name, its head's, tied weights, its arguments, or one size for both ends."""
    if evidence.decoder or any("submodule" in e or re.search(r"MLM|[mM]asked|LM", e) for e in evidence.encoder):
        return True
    V = plan.vocab_size
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    heads = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear) and m.out_features == V]
    if any(id(m.weight) in tables or any(_LM_HEAD.search(step) for step in n.split(".")) for n, m in heads):
        return True
    if any(p.name in ("idx", "targets", "next_tokens", "lm_labels", "mlm_labels") for p in parameters_of(module)):
        return True
    outward = any(_OUT_SIZE.fullmatch(name) for name in sizes)
    kept = [k for part in module.modules() for k, v in vars(part).items() if type(v) is int and v == V]
    return not outward and any(_TOKENS_SIZE.search(name) for name in [*sizes, *kept])


def _sizes(module: nn.Module) -> list[str]:
    """Names of the constructor's parameters, and of the fields of a configuration that it holds."""
    module = getattr(module, "_orig_mod", module)
    config = getattr(held(module, "config"), "__dict__", {})
    try:
        return [*inspect.signature(type(module).__init__).parameters, *config]
    except (TypeError, ValueError):
        return [*config]

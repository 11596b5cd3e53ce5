"""What is said of calls that did not work: each attempt, and what would settle it."""

from __future__ import annotations

import inspect
import re

from torch import nn

from anyformer.core.errors import CallError
from anyformer.models.calls.names import hint, required, token_candidates
from anyformer.models.calls.overrides import Stated
from anyformer.models.calls.probing import Prober
from anyformer.models.plan import CallPlan


def tried(plan: CallPlan, text: str) -> str:
    """An attempt in words: what was given, and what came of it."""
    others = [a.text() for a in plan.extras]
    others += [f"{plan.mask_arg} ({plan.mask_shape})"] if plan.mask_arg else []
    others += [plan.targets_arg] if plan.needs_targets and plan.targets_arg else []
    others += [plan.target_arg] if plan.target_arg else []
    order_ = " as (T, B)" if plan.time_first else " one row at a time" if plan.packed else ""
    given = f"{plan.token_arg}{order_}" + (f" with {' and '.join(others)}" if others else "")
    return f"{given}: {text}".replace("\n", "\n  ")


def parameter_list(parameters: list[inspect.Parameter]) -> str:
    """The parameters as the signature has them."""
    return ", ".join(str(p) for p in parameters) or "nothing"


def sameness(failure: str) -> str:
    """What tells one failure from another: its error without the numbers in it."""
    return re.sub(r"\d+", "0", failure.rsplit("\n", 1)[-1])


_ONE_NUMBER = re.compile(
    r"^\*?\w+( with [^:]*)?: ids \(2, 5\) gave a "
    r"(tensor|\w+ with [\w.]+:) \(2(,|, 1)\)( of float\d+)?(, [\w.]+: \([^)]*\)( of float\d+)?)*$"
)
"""The first thing that comes out; attention weights may follow."""


_SAMPLED = re.compile(r"neg(ative)?s?(_?(seqs?|sequences?|items?|samples?|ids?|inputs?))?")
"""Items of which a recommender is told that they did not come next."""


class SampledItems(CallError):
    """What comes next is told from samples, by a loss of its own."""


class OneNumber(CallError):
    """A single number per text came out of every call: a score, or a yes or no."""


def _likely_value(name: str) -> str | int:
    """What anyformer.yaml could state of a required argument, by its name."""
    kind = "mask" if re.search(r"pad|mask|keep", name, re.IGNORECASE) else hint(name)
    return kind if kind in ("mask", "positions", "segments", "lengths") else 0


def _looks_up(module: nn.Module) -> bool:
    """Whether something in it may be a table of tokens: an embedding, or a matrix that is called so."""
    tables = (nn.Embedding, nn.EmbeddingBag)
    named = [name for name, p in module.named_parameters() if p.dim() == 2 and re.search(r"emb|tok|wte|table", name)]
    return bool(named) or any(isinstance(m, tables) or "embed" in type(m).__name__.lower() for m in module.modules())


_LINE = re.compile(r"[\w.-]+\.py:\d+(?=: )")


def _one_line(failures: list[str]) -> str:
    """The line of the user's code at which every call ended with an error, to be looked at first; "" for none."""
    lines = {(_LINE.findall(failure) or [""])[-1] for failure in failures}
    line = lines.pop() if len(lines) == 1 else ""
    return f"every call ended with an error at {line}: if that line is at fault, mend it there; else\n" if line else ""


_UNREAD = "changing source tokens moves no logits"


def unread_source(prober: Prober, failures: list[str], detail: str) -> CallError | None:
    """Of an encoder-decoder that reads nothing of its source, what is wrong with it."""
    if not any(_UNREAD in failure for failure in failures):
        return None
    return CallError(
        f"nothing of what {type(prober.module).__name__} is given as its source moves its logits",
        detail,
        "give the encoder the source, the decoder what the encoder made of it (memory), and attend to it there",
        check="source",
    )


def nothing_found(
    prober: Prober, parameters: list[inspect.Parameter], failures: list[str], stated: Stated
) -> CallError:
    """What was tried, and the three lines that would settle it."""
    sampled = [p.name for p in required(parameters) if _SAMPLED.fullmatch(p.name.lower())]
    if sampled:
        return SampledItems(
            f"{type(prober.module).__name__} scores items that it is given ({sampled[0]}: sampled ones), and gives no"
            " logits",
            f"its forward takes: {parameter_list(parameters)}",
            "return logits of all items, (B, T, items): hidden states @ the item embedding's weight.T; what comes next"
            " is then trained with cross-entropy",
        )
    # the same error of another attempt says nothing new
    first: dict[str, str] = {}
    for failure in failures:
        first.setdefault(sameness(failure), failure)
    shown = list(first.values())
    if len(shown) > 6:
        shown = [*shown[:5], f"… and {len(shown) - 5} more"]
    detail = f"its forward takes: {parameter_list(parameters)}\n" + "\n".join(
        shown or ["none of these could take token ids"]
    )
    if stated.lines():
        detail += "\nanyformer.yaml states " + ", ".join(stated.lines())
    if any(_ONE_NUMBER.search(failure) for failure in failures):
        return OneNumber(
            f"{type(prober.module).__name__} gives one number per text, no logits",
            detail,
            "if it is a yes or no (binary cross-entropy): call: family: classifier in anyformer.yaml beside the model;"
            " a score has no classes that could be trained",
        )
    empty = [n for n, m in prober.module.named_modules() if isinstance(m, nn.Embedding) and m.num_embeddings == 0]
    if empty:
        return CallError(
            f"the embedding {empty[0]} of {type(prober.module).__name__} has no rows",
            detail,
            "a size of 0 was given to its constructor, say vocab_size: 0 in config.json: give the real one",
        )
    if not any(True for _ in prober.module.parameters()):
        return CallError(
            f"{type(prober.module).__name__} has no parameters",
            detail,
            "make its layers in __init__: those that forward makes anew in each call are never trained",
        )
    known = [p.name for p in parameters]
    likely = [n.lstrip("*") for n in token_candidates(parameters)]
    tokens = next(iter([*([stated.tokens.lstrip("*")] if stated.tokens else []), *likely, *known]), "input_ids")
    others = [p.name for p in required(parameters) if p.name != tokens and hint(p.name) != "targets"]
    arguments = ", ".join(f"{n}: {stated.arguments.get(n, _likely_value(n))}" for n in others)
    whole = any(" at the output" in failure for failure in failures)
    logits = stated.logits or ("output" if whole else "output[0]")
    last = any("perhaps the last position alone" in failure for failure in failures)
    proposed = {f"tokens: {tokens}", f"logits: {logits}"}
    mend = _one_line(failures)
    if not _looks_up(prober.module):
        mend = (
            "it holds no embedding, so it takes vectors and no ids, it seems: self.embed = nn.Embedding(V, D) in its"
            " __init__, self.embed(ids) in its forward; else\n" + mend
        )
    if proposed <= set(stated.lines()):
        return CallError(
            f"no way to call {type(prober.module).__name__} gave logits for every position",
            detail,
            f"{mend}forward should take ids (B, T) int64 and give logits (B, T, vocabulary), alone or named logits\n"
            "what anyformer.yaml states was tried as it stands: correct it by the errors above, or leave it out",
        )
    return CallError(
        f"no way to call {type(prober.module).__name__} gave logits for every position",
        detail,
        f"{mend}forward should take ids (B, T) int64 and give logits (B, T, vocabulary), alone or named logits;"
        " every other argument needs a default\n"
        "or say how it is called in anyformer.yaml beside the model:\n"
        f"call:\n  tokens: {tokens}\n  logits: {logits}"
        + ("\n  family: decoder" if last else "")
        + (f"\n  arguments: {{{arguments}}}" if others else ""),
    )

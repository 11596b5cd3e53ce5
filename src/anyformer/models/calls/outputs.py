"""Where the logits are in what a module gives: which tensor, in which layout, behind which head.

B batch, T time of the sequence that is read out, V vocabulary, C classes, D width of hidden states.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.building.reads import function_node
from anyformer.models.building.reads import methods as methods_of
from anyformer.models.calling import head_of
from anyformer.models.calls.probing import Prober, Run, Seen, readable, tensors_in
from anyformer.models.files.syntax import called
from anyformer.models.plan import Alignment, CallPlan, Layout, LogitsPath, path_text

HEADS = re.compile(
    r"(lm_|output_|out_|final_|token_|vocab_|mlm_|prediction_)?(generator|head|project(ion|or)?|proj|logits?|decoder|"
    r"fc(_?out|_?final)?|out(put)?(_layer)?|linear|classifier|unembed(ding)?|embed_out|predictions?|softmax)"
    r"|to_(logits|out|vocab)|get_logits|compute_logits|lm_logits|score",
)
_STRONG = re.compile(r"generator|lm_head|(output_)?project(ion)?|to_logits|output_projection|mlm_head|unembed(ding)?")
Use = Literal["sequence", "pooled", "last"]


@dataclass(frozen=True)
class Place:
    """A tensor of the output whose axes are what logits could have."""

    use: Use
    logits_from: str
    path: LogitsPath
    layout: Layout
    alignment: Alignment
    V: int

    def text(self) -> str:
        """In words."""
        axes = "({})".format(", ".join({"NV": ("B·T", "V"), "MV": ("T·B", "V")}.get(self.layout, self.layout)))
        if self.layout == "B":
            return f"{self.where()}: one number z per text; (0, z) are the logits of its two classes"
        if self.layout == "last":
            return f"{self.where()} (B, {self.V:,}), of the last position alone"
        if self.use == "pooled":
            axes = "(B, C)"
        length = {"short": "T - 1", "long": "T + 1"}.get(self.alignment, "T")
        axes = axes.replace("T", f"({length})" if "·" in axes and length != "T" else length)
        axes = axes.replace("V", f"{self.V:,}").replace("C", f"{self.V:,}")
        return f"{self.where()} {axes}"

    def stated(self) -> str:
        """As anyformer.yaml states it."""
        if self.logits_from == "loss":
            return f"loss[{self.path[0]}]" if self.path else "loss"
        if self.logits_from.startswith("attribute:"):
            return f"self.{self.logits_from.removeprefix('attribute:')}"
        return "output" + path_text(self.path).removeprefix("the ").removeprefix("output")

    def where(self) -> str:
        """The place alone."""
        if self.logits_from == "loss":
            which = f" number {self.path[0] + 1}" if self.path and isinstance(self.path[0], int) else ""
            return f"what its own cross-entropy{which} is computed from:"
        if self.logits_from.startswith("attribute:"):
            return f"self.{self.logits_from.removeprefix('attribute:')}"
        return path_text(self.path)


def places(runs: list[tuple[Run, int, int]], *, yes_or_no: bool = False) -> list[Place]:
    """The places that have the same axes and the same V in every run; each run comes with its B and T.

    yes_or_no: where nothing else is found, one number per text, (B,) or (B, 1), is two classes.
    """
    found: list[Place] | None = None
    for run, B, T in runs:
        here = _places(run, B, T)
        if yes_or_no and not here:
            numbers = [(p, t) for p, t in tensors_in(run.output) if tuple(t.shape) in ((B,), (B, 1))]
            here = [Place("pooled", "output", path, "B", "next", 2) for path, _ in numbers]
        found = here if found is None else [p for p in found if p in here]
    return found or []


def _places(run: Run, B: int, T: int) -> list[Place]:
    tensors = [("output", path, t) for path, t in tensors_in(run.output)]
    sequence = [p for source, path, t in tensors for p in _shapes(t, source, path, B, T)]
    attributes = [(f"attribute:{name}", path, t) for name, v in run.attributes.items() for path, t in tensors_in(v)]
    beside = [p for source, path, t in attributes for p in _shapes(t, source, path, B, T)]
    # one loss: its place needs no number
    numbers: list[LogitsPath] = [(n,) for n in range(len(run.tapped))] if len(run.tapped) > 1 else [()]
    tapped = [p for path, (t, _) in zip(numbers, run.tapped, strict=False) for p in _shapes(t, "loss", path, B, T)]
    return [*sequence, *beside, *tapped]


def _shapes(tensor: Tensor, source: str, path: LogitsPath, B: int, T: int) -> list[Place]:
    if not readable(tensor):
        return []
    shape = tuple(tensor.shape)
    found: list[Place] = []
    alignments: tuple[tuple[int, Alignment], ...] = ((T, "next"), (T - 1, "short"), (T + 1, "long"))
    for length, alignment in alignments:
        if len(shape) == 3 and length > 1:
            layouts: list[tuple[Layout, tuple[int, int], int]] = [
                ("BTV", (shape[0], shape[1]), shape[2]),
                ("TBV", (shape[1], shape[0]), shape[2]),
                ("BVT", (shape[0], shape[2]), shape[1]),
            ]
            found += [Place("sequence", source, path, lay, alignment, V) for lay, at, V in layouts if at == (B, length)]
        if len(shape) == 2 and shape[0] == B * length and length > 1:
            found.append(Place("sequence", source, path, "NV", alignment, shape[1]))
    if len(shape) == 2 and shape[0] == B:
        found.append(Place("pooled", source, path, "BTV", "next", shape[1]))
    if len(shape) == 3 and shape[:2] == (B, 1):
        found.append(Place("last", source, path, "BTV", "next", shape[2]))
    return [p for p in found if p.V > 1]


def rows_alone(run: Run, B: int) -> bool:
    """Whether it gave no more than numbers per text (B, …) or one for all: no axis could be that of time."""
    given = [t for _, t in tensors_in([run.output, list(run.attributes.values())])]
    return bool(given) and not run.tapped and all(t.dim() < 3 and t.shape[:1] <= (B,) for t in given)


def order(
    found: list[Place], rows: int | None, ranks: Mapping[Place, int] | None = None, classes: Collection[Place] = ()
) -> list[Place]:
    """Likeliest first: named logits, as wide as the embedding has rows, returned rather than seen on the way.

    ranks: by what made the tensor; a matrix of weights, 0, comes before a layer norm (``deciding.decide``).
    classes: rows that are classes where a matrix of weights made them: before tokens that are guessed besides.
    """

    tokens = any(p.use == "sequence" and (rows is None or rows == p.V) for p in found)

    def key(place: Place) -> tuple[int, ...]:
        named = bool(place.path) and str(place.path[-1]) in ("logits", "prediction_logits", "lm_logits", "mlm_logits")
        # classes that are named so, beside hidden states
        label = named and place.use == "pooled" and not tokens and rows != place.V
        label = label or (place in classes and (ranks or {}).get(place) == 0 and place.V not in (1, rows))
        source = ["output", "attribute", "loss"].index(place.logits_from.partition(":")[0])
        attribute = "logit" in place.logits_from
        wide, rank = rows is None or rows != place.V, (ranks or {}).get(place, 0)
        return (
            place.use != "sequence" and not label,
            not label,
            source == 1 and not attribute,
            source,
            not named,
            # one row of as many numbers as there are ids would be the next token's, not classes
            *((rank, wide) if place.use == "pooled" else (wide, rank)),
            place.alignment != "next",
            ["BTV", "TBV", "NV", "MV", "BVT", "B"].index(place.layout),
        )

    return sorted(found, key=key)


def with_place(plan: CallPlan, place: Place) -> CallPlan:
    """The plan with its logits there."""
    return replace(
        plan,
        logits_path=place.path,
        layout=place.layout,
        logits_from=place.logits_from,
        alignment=place.alignment,
        vocab_size=place.V,
    )


def hidden_width(prober: Prober, plan: CallPlan, seen: Seen) -> int | None:
    """V if what lies at the plan's place is as wide as the embedding, which has more rows than that: hidden states."""
    widths = {m.embedding_dim for m in prober.module.modules() if isinstance(m, nn.Embedding)}
    rows = seen.target_rows or seen.embedding_rows
    V = plan.vocab_size
    named = bool(plan.logits_path) and plan.logits_path[-1] == "logits"
    if rows is None or rows < V or V not in widths or named:
        return None
    return V


def find_head(
    prober: Prober, plan: CallPlan, seen: Seen, *, only: str | None = None, states: bool = False
) -> tuple[CallPlan, Finding] | None:
    """The plan with the head that forward leaves to its caller; None where the module has none.

    A head is a submodule or method that did not run and makes rows of an embedding's length of hidden states.
    states: no matrix of weights made what forward gives, so that a head of its width need not be another layer.
    """
    module, width = prober.module, plan.vocab_size
    rows = {m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)}
    wanted = {seen.target_rows or seen.embedding_rows} - {None}
    drawn = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0)).to(prober.device)
    named = [n for n, _ in module.named_modules() if n and n not in seen.called and HEADS.fullmatch(n.split(".")[-1])]
    methods = [n for n, f in inspect.getmembers(type(module), inspect.isfunction) if HEADS.fullmatch(n)]
    order = sorted([*named, *methods], key=lambda n: (n.count("."), n not in methods, n))
    for name in [only] if only else [*order, *_tables_that_score(module)]:
        try:
            with torch.no_grad():
                logits = head_of(module, name)(drawn)
        except Exception:  # noqa: BLE001  (what cannot take hidden states is no head)
            continue
        if not isinstance(logits, Tensor) or logits.shape[:2] != (2, 3) or logits.dim() != 3:
            continue
        sure = only or name not in order or _STRONG.fullmatch(name.split(".")[-1]) or (states and "." not in name)
        if logits.shape[2] == width and not sure:
            continue  # another layer of the same width
        if logits.shape[2] in (wanted or rows):
            tied = isinstance(dict(module.named_modules()).get(name), nn.Embedding)
            what = "multiplies hidden states in a method" if tied else "did not run in forward"
            how = f"{name} {what} and makes {logits.shape[2]:,} numbers of {width}"
            return replace(plan, head=name, vocab_size=logits.shape[2]), Finding("head", "ok", name, reason=how)
    return None


def _tables_that_score(module: nn.Module) -> list[str]:
    """Embeddings with whose weight the model's own methods multiply (``states @ self.items.weight.T``): a tied head."""
    found = []
    for _, _, function in methods_of(type(module)):
        node = function_node(function)
        for part in ast.walk(node) if node is not None else ():
            product = isinstance(part, ast.BinOp) and isinstance(part.op, ast.MatMult)
            if not (product or (isinstance(part, ast.Call) and called(part) in ("matmul", "mm", "linear", "einsum"))):
                continue
            names = [n.value.attr for n in ast.walk(part) if _is_own_weight(n)]  # type: ignore[attr-defined]
            found += [n for n in names if isinstance(getattr(module, n, None), nn.Embedding)]
    return list(dict.fromkeys(found))


def _is_own_weight(node: ast.AST) -> bool:
    """``self.NAME.weight``."""
    owner = node.value if isinstance(node, ast.Attribute) and node.attr == "weight" else None
    return isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "self"


def require_head(prober: Prober, plan: CallPlan, seen: Seen) -> None:
    """CallError: hidden states and nothing that makes logits of them."""
    V, rows = plan.vocab_size, seen.target_rows or seen.embedding_rows or 0
    raise CallError(
        f"{type(prober.module).__name__} gives hidden states, no logits: {path_text(plan.logits_path)} is (B, T, {V})",
        f"{V} is the width of its embedding; a head would give {rows:,}, one number per token of the vocabulary",
        f"add a head: self.head = nn.Linear({V}, {rows}), and return self.head(x)",
    )


def logits_finding(
    place: Place,
    plan: CallPlan,
    others: list[Place],
    rows: int | None,
    needed: str,
    undecided: tuple[Place, ...] = (),
    tables: Collection[int] = (),
) -> Finding:
    """Where the logits are, and what speaks against it.

    undecided: others that could be the logits as well. tables: rows of the embeddings, those of positions left out.
    """
    text = place.text()
    if plan.family == "encoder_decoder":
        text = re.sub(r"\([^()]*\bT\b[^()]*\)", lambda axes: axes.group().replace("T", "S"), text)
    measured = text + (f", only when {needed} are given" if needed else "")
    V = plan.vocab_size
    beside = [
        p.text()
        for p in others
        if p.logits_from == "output" and (p.path, p.logits_from) != (place.path, place.logits_from)
    ]
    named = bool(place.path) and place.path[-1] == "logits"
    if plan.head is not None:
        return Finding("logits", "ok", f"hidden states {measured}; {plan.head} makes {V:,} of them")
    if plan.family != "classifier" and rows is not None and rows // 2 >= V:
        why = f"the embedding has {rows:,} rows: labels of tokens, perhaps; no token can be predicted"
        return Finding("logits", "fail", measured, "as wide as the embedding has rows", why)
    if plan.family != "classifier" and V not in tables:
        wide = [p for p in others if p.logits_from == "output" and p.use == "sequence" and p.V in tables]
        if wide:
            why = f"{wide[0].text()} is as wide as an embedding that these ids do not reach: state tokens: and logits:"
            return Finding("logits", "fail", measured, "as wide as the embedding of the ids has rows", why)
    if undecided:
        lines = "; ".join(f"{p.where()} (call: logits: {p.stated()})" for p in undecided[:3])
        why = f"others could be the logits as well, its own loss does not say; state them in anyformer.yaml: {lines}"
        verdict = "fail" if place.logits_from == "loss" else "warn"
        return Finding("logits", verdict, measured, "one output as wide as the vocabulary", why)  # type: ignore[arg-type]
    if beside and not named and rows != V and place.use == "sequence":
        return Finding("logits", "warn", measured, reason=f"the first of several: also {', '.join(beside)}")
    if plan.family != "classifier" and rows is not None and rows > V:
        why = f"narrower than the embedding's {rows:,} rows: ids from {V:,} on can be read but not predicted"
        return Finding("logits", "warn", measured, "as wide as the embedding has rows", why)
    return Finding("logits", "ok", measured, reason=f"beside {', '.join(beside)}" if beside else "")

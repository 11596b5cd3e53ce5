"""Whether a call that runs means what training takes it for: guessed arguments, places of logits, classes.

A call of the right shape may still be another objective: a second text that was made up, logits that all come from one
place, an embedding taken for classes. B batch, T time, V vocabulary, C classes, D width of hidden states.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.blame import blame
from anyformer.models.calling import value_of
from anyformer.models.calls.causal import glance
from anyformer.models.calls.forcing import is_forcing
from anyformer.models.calls.masks import with_argument
from anyformer.models.calls.names import causal_switch, held, hint, parameters_of
from anyformer.models.calls.origins import POOLS, Trace
from anyformer.models.calls.overrides import Stated
from anyformer.models.calls.probing import Prober, changed_inputs, difference, tensors_in, tolerance
from anyformer.models.calls.properties import squashed
from anyformer.models.inputs import Inputs
from anyformer.models.plan import Argument, CallPlan, follow

_POSITIONAL = re.compile(r"pos|wpe|(^|[._])pe($|[._])|seg|token_?type|(^|[._])type|time|place", re.IGNORECASE)
_CLASSES = re.compile(
    r"class|(^|_)cls|label|intent|sentiment|topic|categor|(^|_)head|(^|_)fc|score|logit|(^|_)(out|output|pred)(_|$)"
    r"|predict|linear|final|decoder",
    re.IGNORECASE,
)
_OF_A_BLOCK = re.compile(r"\.\d+\..*[^\d.]")  # "layers.0.linear2", not "head.2"
_PLAIN = re.compile(r"class|(^|_)cls|label", re.IGNORECASE)
_COUNTS = re.compile(r"(num|n)_?(class(es)?|labels?|cls|categories|intents|topics|tags)|nclass(es)?", re.IGNORECASE)
_MANY = 64  # classes; data sets of text with more are rare, embeddings with fewer numbers are too
_FEWEST, _SECONDS = 4, 3.0  # places that are tried in any case; of the processor, for the others
_LONG = 128  # tokens: of such texts two will do
_PLACES = 12  # of a text whose tokens are changed one by one: a forward each
_UNIT = 1e-4  # of a row's length from 1


def call_findings(prober: Prober, plan: CallPlan, said: Stated) -> list[Finding]:
    """That the logits react to the ids; what else goes in. CallError where they do not, or are NaN."""
    both: list[Tensor] = []
    for seed in (1, 2):
        inputs = prober.inputs(plan, 2, max(2, prober.length), seed)
        try:
            both.append(prober.logits(plan, inputs))
        except Exception as error:
            limit = plan.embedding_rows or plan.vocab_size
            raise CallError(f"{type(prober.module).__name__} refuses ids below {limit:,}", blame(error)) from error
    first, second = both
    broken = first.isnan() | (first == torch.inf)  # -inf may shut out what is never written
    if bool(broken.any()):
        bad = [n for n, p in prober.module.named_parameters() if p.is_floating_point() and not bool(p.isfinite().all())]
        weights = f"; not finite: {', '.join(bad[:4])}{' …' if len(bad) > 4 else ''}" if bad else ""
        mask = "look for a row of the attention mask that hides everything, or for weights that are not initialised"
        what = "NaN" if bool(first.isnan().any()) else "infinite logits"
        part = first_broken(prober, plan)
        raise CallError(
            f"{type(prober.module).__name__} gives {what} before any training",
            f"{int(broken.sum()):,} of {first.numel():,} logits{weights}" + (f"; first in {part}" if part else ""),
            f"initialise {bad[0]}: torch.empty holds whatever was in memory" if bad else mask,
            check="call" if bad else "finite",
            where="" if bad else part,
        )
    name = plan.token_arg.lstrip("*")
    if float(difference(first, second).max()) == 0.0:
        raise CallError(
            f"the logits of {type(prober.module).__name__} do not depend on {name}",
            "two random batches gave equal logits",
            "forward should compute its output from the ids",
            check="past",
        )
    axes = {"T": "(T,)", "1T": "(1, T)"}.get(plan.packed, "(T, B)" if plan.time_first else "(B, T)")
    alone = len([p for p in parameters_of(prober.module) if hint(p.name) not in ("targets", "mask")]) == 1
    reason = "the only argument that can take ids" if alone else "the logits react to it"
    findings = [Finding("tokens", "ok", f"{name} {axes} int64", reason=reason)]
    if plan.packed:
        findings.append(
            Finding("rows", "warn", "one after the other", "a batch at once", "it takes one sequence: slow")
        )
    if plan.graph is not None:
        findings.append(Finding("graph", "ok", f"{len(plan.graph.steps)} nodes, run in the order of their inputs"))
        findings += plan.graph.findings
    if plan.target_arg:
        findings.append(
            Finding("target", "ok", f"{plan.target_arg} {axes.replace('T', 'S')} int64", reason="its input")
        )
    for call in plan.methods:
        given = ", ".join(a.text() for a in call.arguments)
        findings.append(Finding("method", "ok", f"{call.name}({given})"))
    findings += guess_findings(prober, plan, said)
    if said.lines():
        findings.append(Finding("stated", "note", "; ".join(said.lines()), reason="in anyformer.yaml"))
    return findings


def settle_segments(prober: Prober, plan: CallPlan) -> CallPlan:
    """The plan with 1 as the number of the one segment, where the embedding of segments keeps row 0 for padding."""
    inputs = prober.inputs(plan, 1 if plan.packed else 2, prober.fixed or max(3, prober.length), 1)
    for argument in plan.extras:
        if argument.role != "segments" or plan.graph is not None:
            continue
        table = _reaches(prober, plan, argument, inputs)
        rows = prober.module.get_submodule(table) if table else None
        if isinstance(rows, nn.Embedding) and rows.padding_idx == 0 and rows.num_embeddings > 1:
            plan = with_argument(plan, replace(argument, value=1))
    return plan


def guess_findings(prober: Prober, plan: CallPlan, said: Stated) -> list[Finding]:
    """One for each further argument; fail where its name says nothing, it was made up and what it is matters."""
    findings = []
    switches = {p.name for p in parameters_of(prober.module) if causal_switch(p)}
    for argument in plan.extras:
        guessed = hint(argument.name) in ("unknown", "tokens") and argument.name not in said.arguments
        # what lets it read the given tokens was proven to (forcing), whatever it is called
        guessed = guessed and argument.name not in switches and not is_forcing(argument.name)
        guessed = guessed or argument.role == "target_ids"
        if guessed and argument.role == "causal_mask":
            findings += _guessed_mask(prober, plan, argument)
        if "mask" in argument.role or "causal" in argument.name:
            continue
        why = "row 0 of its embedding is that of padding" if argument.role == "segments" and argument.value else ""
        known = Finding("argument", "ok", argument.text(), reason=why)
        findings.append(_guess(prober, plan, argument) if guessed else known)
    return findings


def _guess(prober: Prober, plan: CallPlan, argument: Argument) -> Finding:
    """An argument that nothing names: does another value give other logits?"""
    T = max(3, prober.length)
    # a constant of two rows does not fit a module that is given one row at a time
    inputs = prober.inputs(plan, 1 if plan.packed else 2, prober.fixed or T, 1)
    base = prober.try_logits(plan, inputs)
    others = _other_values(plan, argument, inputs)
    moved, ran = False, 0
    for value in others:
        other = prober.try_logits(with_argument(plan, Argument(argument.name, "constant", "", value=value)), inputs)
        if base is not None and other is not None:
            ran += 1
            moved = moved or other.shape != base.shape or bool((difference(base, other) > tolerance(base)).any())
    if others and not ran:
        why = f"no other value runs, so nothing shows what it is; say it: call: arguments: {{{argument.name}: …}}"
        return Finding("argument", "fail", argument.text(), "arguments that are known", why)
    if not moved and argument.role in ("positions", "segments") and _moves_others(prober, plan, argument, inputs):
        why = "a second text, perhaps: it changes another output than the one taken for logits; say what it is in"
        why += f" anyformer.yaml: call: arguments: {{{argument.name}: …}}"
        return Finding("argument", "fail", argument.text(), "arguments that are known", why)
    if not moved and argument.role == "target_ids":
        return Finding("argument", "ok", argument.text(), reason="of the loss: another value gives no other logits")
    if not moved:
        verdict = "ok" if argument.role == "constant" else "warn"
        why = "its name says nothing; another value gave no other logits" if others else ""
        return Finding("argument", verdict, argument.text(), reason=why)  # type: ignore[arg-type]
    table = _reaches(prober, plan, argument, inputs)
    if argument.role in ("positions", "segments") and table and _POSITIONAL.search(table):
        return Finding("argument", "ok", argument.text(), reason=f"it goes to {table}")
    what = "a second text, perhaps" if argument.role in ("positions", "segments") else "nothing says what it is"
    why = f"a guess that changes the logits; say what it is in anyformer.yaml: call: arguments: {{{argument.name}: …}}"
    return Finding("argument", "fail", f"{argument.text()}: {what}", "arguments that are known", why)


def _moves_others(prober: Prober, plan: CallPlan, argument: Argument, inputs: Inputs) -> bool:
    """Whether other values change a tensor that is given beside the logits; a loss, one number, is left out."""

    def beside(of: CallPlan) -> list[Tensor]:
        run, _ = prober.run(of, inputs)
        found = [] if run is None or plan.logits_from != "output" else tensors_in(run.output)
        return [t for path, t in found if t.numel() > 1 and path != plan.logits_path]

    base = beside(plan)
    for value in _other_values(plan, argument, inputs):
        other = beside(with_argument(plan, Argument(argument.name, "constant", "", value=value)))
        pairs = zip(base, other, strict=False)
        if any(a.shape == b.shape and bool((difference(a, b) > tolerance(a)).any()) for a, b in pairs):
            return True
    return False


def _guessed_mask(prober: Prober, plan: CallPlan, argument: Argument) -> list[Finding]:
    """A square tensor under no mask's name: without it the future is seen, or it is something else."""
    T = max(2, prober.length)
    given = value_of(plan, argument, prober.inputs(plan, 2, T, 1))
    empty = torch.full_like(given, argument.form == "keep")
    if "B" in argument.shape or glance(prober, plan).causal is False:
        return []
    bare = with_argument(plan, Argument(argument.name, "constant", "", value=empty))
    sight = glance(prober, bare)
    if sight.leak is not None:
        return []
    inputs = prober.inputs(plan, 2, T, 1)
    drawn = torch.rand(given.shape, generator=torch.Generator().manual_seed(31)).to(given.device)
    drawn = drawn if given.is_floating_point() else (drawn > 0.5).to(given.dtype)
    changed = with_argument(plan, Argument(argument.name, "constant", "", value=drawn))
    base, other = prober.try_logits(plan, inputs), prober.try_logits(changed, inputs)
    if base is None or other is None or not bool((difference(base, other) > tolerance(base)).any()):
        return []
    why = f"it hides nothing of the future, yet changes the logits; state it: call: arguments: {{{argument.name}: …}}"
    return [Finding("argument", "fail", f"{argument.text()}: nothing says what it is", "arguments that are known", why)]


def _other_values(plan: CallPlan, argument: Argument, inputs: Inputs) -> list[object]:
    """Values of the same kind that say something else."""
    if argument.role == "constant":
        value = argument.value
        if isinstance(value, bool):
            return [not value]
        return [value + 1] if isinstance(value, int) else []
    given = value_of(plan, argument, inputs)
    generator = torch.Generator().manual_seed(31)
    drawn = torch.randint(0, 2, given.shape, generator=generator).to(given.device)
    if argument.role == "lengths":
        return [(given - drawn).clamp_min(1), torch.ones_like(given)]
    return [drawn.to(given.dtype), torch.zeros_like(given), torch.ones_like(given)]


def _reaches(prober: Prober, plan: CallPlan, argument: Argument, inputs: Inputs) -> str:
    """Name of the embedding that looks the argument up; "" where none does."""
    value = value_of(plan, argument, inputs)
    if not isinstance(value, Tensor):
        return ""
    marked = value.clone()
    marked[..., -1] = 1  # no arange and no zeros that the module could have made by itself
    plan = with_argument(plan, Argument(argument.name, "constant", "", value=marked))
    found: list[str] = []
    handles = []
    for name, module in prober.module.named_modules():
        if isinstance(module, nn.Embedding):

            def look(_: nn.Module, given: tuple[object, ...], name: str = name) -> None:
                if given and isinstance(given[0], Tensor) and torch.equal(given[0].flatten(), marked.flatten()):
                    found.append(name)

            handles.append(module.register_forward_pre_hook(look))
    try:
        prober.run(plan, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


def places_finding(prober: Prober, plan: CallPlan) -> list[Finding]:
    """Fail where the logits of every place are the same, or an encoder's do not depend on the token of their place."""
    if plan.family == "classifier":
        return []
    T = prober.fixed or max(T for _, T, _ in prober.sizes)
    if T < 2:
        return []
    inputs = prober.inputs(plan, 4 if T < _LONG else 2, T, 17, T)
    logits = prober.try_logits(plan, inputs)
    if logits is None or logits.shape[1] < 2:
        return []
    limit = tolerance(logits)
    if not bool((difference(logits, logits[:, :1].expand_as(logits)) > limit).any()):
        why = "all come from one place of the text, or from the whole of it (attention without x + … leaves a mean)"
        return [Finding("places", "fail", "every position gives the same logits", "each has its own", why)]
    if bool((logits >= 0).all()) and bool(((-logits.double()).logsumexp(-1).abs() < 1e-3).all()):
        why = "the likeliest token has the smallest number: softmax would turn them round; leave the minus sign out"
        return [Finding("places", "warn", "negative log-probabilities", "logits", why)]
    if plan.family != "encoder":
        return []
    still = []
    tried = sorted({n * (T - 1) // (_PLACES - 1) for n in range(_PLACES)})
    tried = [*tried[::_FEWEST], *[t for n, t in enumerate(tried) if n % _FEWEST]]  # spread, where time ends it
    begun = prober.seconds()
    for n, t in enumerate(list(tried)):
        if n >= _FEWEST and prober.seconds() - begun > _SECONDS:
            tried = tried[:n]
            break
        other = prober.try_logits(plan, changed_inputs(prober, plan, inputs, t))
        if other is not None and not float(difference(logits, other)[:, t].max()) > limit:
            still.append(t)
    if len(still) * 2 > len(tried):
        measured = f"changing token t does not change logits[t] at {len(still)} of {len(tried)} positions"
        why = "they are not for the token of their place, which masked language modelling predicts"
        return [Finding("places", "fail", measured, "each position's logits depend on its token", why)]
    return []


def classes_finding(prober: Prober, plan: CallPlan, said: Stated) -> list[Finding]:
    """Whether one row of numbers per text is a row of classes, or what a text is compared by.

    That a head is missing is told by names and widths; where the user states family: classifier, it is a warning.
    """
    if plan.family != "classifier":
        return []
    inputs = prober.inputs(plan, 4, max(2, prober.length), 19)
    values = prober.try_logits(replace(plan, kind="logits"), inputs)
    if values is None:
        return []
    C = plan.vocab_size
    lengths = values.double().norm(dim=-1)
    if C > 1 and bool(((lengths - 1).abs() < _UNIT).all()):
        why = "cross-entropy over its coordinates would teach nothing; the model needs a Linear of classes at its end"
        return [Finding("classes", "fail", "each row has length 1: a sentence embedding", "one number per class", why)]
    sums, bounded = values.double().sum(-1), squashed(prober, plan, inputs) if plan.kind == "logits" else ""
    if bounded == "sigmoid" and bool(((sums - 1).abs() > 1e-3).any()):
        why = "a sigmoid per class: several may be right at once, which cross-entropy of one class would forbid"
        return [Finding("classes", "fail", f"{C} independent labels", "one class per text", why)]
    if bool(((values == 0) | (values.abs() == 1)).all()):
        why = "bits, or numbers that were rounded: no gradient of cross-entropy goes through them"
        return [Finding("classes", "fail", f"{C} numbers that are -1, 0 or 1", "logits", why)]
    named = _says_classes(prober.module, C)
    if (states := _states(prober, plan, inputs)) and not any(_PLAIN.search(n) for n in _heads(prober.module, C)):
        why = f"{states}; no matrix of weights makes classes of them: an embedding of the text, perhaps"
        return [Finding("classes", "fail", f"{C} numbers per text: hidden states", "one number per class", why)]
    widths = {m.embedding_dim for m in prober.module.modules() if isinstance(m, nn.Embedding)}
    if C in widths and not named:
        return [_headless(prober.module, C, bounded, said)]
    if bounded == "tanh":
        why = (
            "whatever its weights are: the bits of a code (tanh), or cosines, which cross-entropy can hardly tell apart"
        )
        return [Finding("classes", "warn", f"{C} numbers between -1 and 1", "logits", why)]
    if C >= _MANY and not named:
        why = "nothing in it is named after classes; were it an embedding of the text, this objective would be wrong"
        return [Finding("classes", "warn", f"{C} classes?", "fewer, or a name that says so", why)]
    return []


def _headless(module: nn.Module, C: int, bounded: str, said: Stated) -> Finding:
    """One row as wide as the embedding, which nothing calls classes: what a head would read."""
    if said.family == "classifier":
        why = "they are as wide as its embedding, and nothing in it is named after classes"
        return Finding("classes", "warn", f"{C} classes, as asked", "nothing against it", why)
    within = ", within -1 … 1 by a tanh, as a pooler's output is" if bounded == "tanh" else ""
    why = (
        f"{C} is the width of its embedding{within}, and nothing in it is named after classes: a head is missing."
        f" Add one: self.classifier = nn.Linear({C}, number of classes); if they are classes all the same,"
        " anyformer.yaml settles it: call: family: classifier"
    )
    return Finding("classes", "fail", f"{C} numbers per text: hidden states", "one number per class", why)


def _states(prober: Prober, plan: CallPlan, inputs: Inputs) -> str:
    """Of what lies at the plan's place: which layer as wide made it, where that is no head; "" where one is."""
    if plan.logits_from != "output" or plan.head is not None or plan.graph is not None:
        return ""
    with Trace((inputs.input_ids,), POOLS) as trace:
        run, _ = prober.run(plan, inputs)
    found = None if run is None else follow(run.output, plan.logits_path)
    origin = trace.of(found) if isinstance(found, Tensor) else None
    if origin is None or origin.kind == "linear":
        return ""
    C = plan.vocab_size
    for name, part in prober.module.named_modules():
        wide = isinstance(part, nn.LayerNorm) and part.normalized_shape[-1] == C
        wide = wide or (isinstance(part, nn.RNNBase) and C in (part.hidden_size, 2 * part.hidden_size))
        wide = wide or (isinstance(part, nn.Embedding) and part.embedding_dim == C and origin.kind != "embedding")
        if wide:
            return f"as wide as what {name} ({type(part).__name__}) works on"
    return ""


def _heads(module: nn.Module, C: int) -> list[str]:
    return [n for n, m in module.named_modules() if isinstance(m, nn.Linear) and m.out_features == C]


def _says_classes(module: nn.Module, C: int) -> bool:
    """A Linear of that many outputs by the name of a head, or a number of classes that the module keeps."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and part.out_features == C:
            # a layer inside is as wide, too, or the second of a block's two: only plain words count
            wide = part.in_features == C or bool(_OF_A_BLOCK.search(name))
            words = _PLAIN if wide else _CLASSES
            if any(words.search(step) for step in name.split(".")):
                return True
        kept = {**vars(part), **getattr(held(part, "config"), "__dict__", {})}
        if any(_COUNTS.fullmatch(key) and value == C for key, value in kept.items() if isinstance(value, int)):
            return True
    return False


def first_broken(prober: Prober, plan: CallPlan) -> str:
    """The submodule that first makes NaN of numbers: "blocks.0.attn (Attention)"; "" where none does."""
    found: list[str] = []

    def watching(name: str) -> Any:
        def hook(module: nn.Module, given: Any, named: Any, output: Any) -> None:
            read = [t for _, t in tensors_in([*given, *named.values()]) if t.is_floating_point()]
            made = [t for _, t in tensors_in(output) if t.is_floating_point()]
            if not found and any(t.isnan().any() for t in made) and not any(t.isnan().any() for t in read):
                found.append(f"{name} ({type(module).__name__})")

        return hook

    handles = [m.register_forward_hook(watching(n), with_kwargs=True) for n, m in prober.module.named_modules() if n]
    try:
        prober.run(plan, prober.inputs(plan, *prober.sizes[0][:2], 0, prober.sizes[0][2]))
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""

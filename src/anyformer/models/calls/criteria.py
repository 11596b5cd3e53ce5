"""What the model's own file trains it with: cross-entropy of classes, or a loss of numbers, of labels, of distances.

One row of numbers per text may be classes, scores, several labels or a code; no run of the module tells which. Losses
that it holds, or that its file names, do. B batch, T time, V vocabulary, C classes.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from anyformer.core.findings import Finding
from anyformer.models.blame import is_library
from anyformer.models.calls.names import held, parameters_of
from anyformer.models.calls.overrides import Stated
from anyformer.models.calls.ownloss import OwnLoss
from anyformer.models.calls.probing import Prober
from anyformer.models.plan import CallPlan, Objective

Kind = Literal["classes", "labels", "numbers", "distances", "alignment"]
# fmt: off
_KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("labels", re.compile(
        r"BCE\w*|bce_?(with_logits_?)?loss\w*|binary_cross_?entropy\w*|BinaryCrossEntropy\w*|MultiLabel\w*Loss"
        r"|multilabel\w*_loss|SoftMarginLoss|soft_margin_loss|AsymmetricLoss\w*"
    )),
    ("alignment", re.compile(r"CTC_?Loss|ctc_loss")),
    ("numbers", re.compile(
        r"(MC?RMSE|R?MSE|RMSLE|MAE|L[12]|Smooth_?L1|Huber|LogCosh|GaussianNLL|PoissonNLL|Quantile|Pinball|MDN"
        r"|MixtureDensity|CCC|Pearson\w*|Regression|Coral|Corn|Ordinal|Cox)_?Loss\w*"
        r"|(mc?rmse|r?mse|rmsle|mae|l[12]|smooth_?l1|huber|log_?cosh|gaussian_nll|poisson_nll|quantile|pinball|mdn"
        r"|mixture_density|ccc|pearson|regression|coral|corn|ordinal|cox)_loss\w*"
        r"|Mean(Squared|Absolute)Error|mean_(squared|absolute)_error|R2Score|r2_score|PearsonCorrCoef|pearsonr|spearmanr"
    )),
    ("distances", re.compile(
        r"(Cosine|Triplet|Contrastive|Margin_?Ranking|Ranking|Hinge|Info_?NCE|NT_?Xent|SupCon|MultipleNegatives"
        r"|Pairwise|ListNet|LambdaRank|BPR)\w*Loss\w*|InfoNCE|NTXent"
        r"|(cosine|triplet|contrastive|margin_ranking|ranking|hinge|info_?nce|nt_?xent|supcon|pairwise|bpr)\w*_loss\w*"
    )),
    ("classes", re.compile(
        r"\w*[cC]ross_?[eE]ntropy\w*|CE_?Loss|ce_loss|nll_loss|NLL_?Loss|\w*kl_?div\w*|KLDiv\w*|[lL]abel_?[sS]mooth\w*"
        r"|[fF]ocal_?[lL]oss\w*|MultiMarginLoss|multi_margin_loss|log_softmax|LogSoftmax|AdaptiveLogSoftmaxWithLoss"
    )),
)
# fmt: on
_MEANS: dict[Kind, str] = {
    "classes": "one class of several",
    "labels": "labels of which several may be right at once (multi-label)",
    "numbers": "numbers (regression)",
    "distances": "what two texts are compared by (a ranking, an embedding)",
    "alignment": "a text aligned with a longer one (CTC)",
}
_OTHER_CLASS = re.compile(
    r"Regress(?!ive)|MultiLabel|Multilabel|Quantile|Siamese|Triplet|Ranker|Ranking|Reward|Critic|Hash(?!ed|ing_?Trick)"
    r"|Ordinal|Coral(?![a-z])|Survival|DQN|QNet|PolicyNet|Actor|MixtureDensity|MDN|BiEncoder|DualEncoder|TwoTower|SentenceEmbed"
)
_SCORE = re.compile(r"Scor(er|ing)|Rater|Rating|Similarity")
"""Of one number per text: graded, not yes or no."""
_LOGISTIC = re.compile(r"[lL]ogistic_?[rR]egress\w*|[aA]uto_?[rR]egress\w*")
_OTHER_HEAD = re.compile(
    r"(^|_)(values|value_(head|net|out)|v_head|critic|reward|regress(or|ion)?|q_?values?|quantiles?|hash|mdn|mu|mean|log_?var|sigma)(_|$)",
    re.I,
)
_OTHER_SIZE = re.compile(
    r"(num_|n_)?(quantiles?|mixtures|gaussians|hash_?bits|code_?(length|size|bits))|n_?bits",
    re.I,
)
_SAYS_CLASSES = re.compile(r"[cC]lassif|CLS(?![a-z])|[sS]entiment|Intent|Topic|NLI(?![a-z])|Entail|Cls|Category")
_COUNT = re.compile(
    r"(num|n|nb)_?(of_)?(class(es)?|labels?|cls|categories|intents)|(class(es)?|labels?)_?(num|size|dim|count)|n?class(es)?",
    re.I,
)
_SIBLINGS = 30  # files beside the model's that are read at most
_LONGEST = 400_000  # characters of a file that is read
_TESTS = ("test_", "conftest")  # files that name every loss there is, and train nothing


@dataclass(frozen=True)
class Criteria:
    """Losses by what they are for, and where they were found."""

    own: dict[Kind, str]
    """Held by the module, or named in the methods of its class."""
    file: dict[Kind, str]
    """Named elsewhere in its file: a training function, a loss class, the script; else in files that import it."""

    @property
    def first(self) -> dict[Kind, str]:
        """Those nearest to the model."""
        return self.own or self.file


def find_criteria(module: nn.Module) -> Criteria:
    """Read the text of its class, its loss modules and its file; nothing is run."""
    module = getattr(module, "_orig_mod", module)
    own: dict[Kind, str] = {}
    for part in module.modules():
        if isinstance(part, nn.modules.loss._Loss) or re.search(r"Loss(?![a-z])|Criterion", type(part).__name__):
            _add(own, [type(part).__name__], "")
    for cls in classes_of(module):
        _add(own, _names(_tree(_source(cls))), "")
    return Criteria(own, _of_file(module))


def classes_of(module: nn.Module) -> list[type]:
    """The class of the module and those that it inherits from, torch's left out."""
    outside = ("torch.", "pytorch_lightning", "lightning")
    return [c for c in type(module).__mro__ if issubclass(c, nn.Module) and not c.__module__.startswith(outside)]


def _source(thing: type) -> str:
    try:
        return textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        return ""


def _tree(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg


def _add(found: dict[Kind, str], names: Iterable[str], where: str) -> None:
    for name in dict.fromkeys(names):
        kind = next((kind for kind, pattern in _KINDS if pattern.fullmatch(name)), None)
        if kind is not None:
            found.setdefault(kind, name + where)


def _of_file(module: nn.Module) -> dict[Kind, str]:
    try:
        path = Path(inspect.getfile(type(module)))
    except (OSError, TypeError):
        return {}
    if is_library(str(path)) or path.name.startswith(_TESTS):
        return {}
    found: dict[Kind, str] = {}
    name = type(module).__name__
    for node in _tree(_text(path)).body:
        _add(found, _told_by(node, name), f" in {path.name}")
    for other in () if found else sorted(path.parent.glob("*.py"))[:_SIBLINGS]:
        text = "" if other == path or other.name.startswith(_TESTS) else _text(other)
        if re.search(rf"\b(from|import)\b[^\n]*\b{re.escape(path.stem)}\b", text) and re.search(rf"\b{name}\b", text):
            for node in _tree(text).body:
                _add(found, _told_by(node, name), f" in {other.name}")
    return found


def _told_by(node: ast.stmt, name: str) -> Iterator[str]:
    """Names in a statement of the file; of a class only if it is a loss, trains, or uses the model."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.ClassDef):
        inside = set(_names(node))
        trains = any(isinstance(n, ast.FunctionDef) and n.name == "training_step" for n in node.body)
        loss = bool(re.search(r"Loss(?![a-z])|Criterion", node.name))
        if node.name == name or not (loss or trains or name in inside):
            return
        yield node.name
    yield from _names(node)


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text if len(text) <= _LONGEST else ""


def criteria_finding(
    prober: Prober, plan: CallPlan, said: Stated, own: OwnLoss, objective: Objective | None
) -> list[Finding]:
    """Fail where the only losses that the model or its file names are no cross-entropy; warn where nothing says."""
    module = getattr(prober.module, "_orig_mod", prober.module)
    if any(f.name == "own loss" and f.verdict == "ok" for f in own.findings):
        return []
    criteria = find_criteria(module)
    insists = said.family is not None or objective is not None
    if plan.family != "classifier":
        return _of_tokens(plan, criteria, insists)
    if plan.layout == "B":
        return [_of_yes_or_no(module, plan, criteria.first, insists)]
    return _of_classes(module, plan.vocab_size, criteria.first, own, insists)


def yes_or_no(module: nn.Module, said: Stated, objective: Objective | None) -> bool:
    """Whether one number per text may be a yes or no: binary cross-entropy, a sigmoid, or a classifier by its name.

    Not where a loss of numbers or distances is named, too, unless the user says that there are classes.
    """
    if said.family == "classifier" or objective == "classification":
        return True
    module = getattr(module, "_orig_mod", module)
    first = find_criteria(module).first
    if "numbers" in first or "distances" in first:
        return False
    sigmoid = any(isinstance(part, nn.Sigmoid) for part in module.modules())
    names = {name for cls in classes_of(module) for name in _names(_tree(_source(cls)))}
    return "labels" in first or sigmoid or "sigmoid" in names or _classifier(module) is not None


def _classifier(module: nn.Module) -> str | None:
    """Its class, or one that it inherits from, where that is named a classifier."""
    return next((c.__name__ for c in classes_of(module) if re.search(r"[cC]lassif", c.__name__)), None)


def _of_yes_or_no(module: nn.Module, plan: CallPlan, first: dict[Kind, str], insists: bool) -> Finding:
    """Of one number per text that is taken for two classes."""
    same = "two classes (0, z): their cross-entropy is the binary one of z"
    if plan.kind == "probabilities":
        same = "two classes (1 - p, p): their cross-entropy is the binary one of p"
    named = _named_otherwise(module, 1)
    if not insists and named:
        why = (
            f"{named} says so: a score, no yes or no; if it is one, anyformer.yaml settles it: call: family: classifier"
        )
        return Finding("criterion", "fail", "one number per text, no classes", "one class per text", why)
    scores = next((c.__name__ for c in classes_of(module) if _SCORE.search(c.__name__)), None)
    if not insists and scores is not None and "labels" not in first:
        why = f"class {scores} says so; if it is a yes or no: call: family: classifier in anyformer.yaml"
        return Finding("criterion", "fail", "one number per text, no classes", "one class per text", why)
    if "labels" in first:
        return Finding("criterion", "ok", f"one number per text, trained with {first['labels']}", reason=same)
    if insists:
        return Finding("criterion", "warn", "one number per text, two classes as asked", "", same)
    if (name := _classifier(module)) is not None:
        return Finding("criterion", "note", f"one number per text, of class {name}: a yes or no", reason=same)
    if plan.kind != "probabilities":
        why = "neither it nor its file names binary cross-entropy; if it is a yes or no: call: family: classifier"
        return Finding("criterion", "fail", "one number per text, no classes", "one class per text", why)
    if _named_classes(module, 1):
        return Finding("criterion", "note", "one probability per text", reason=same)
    why = f"{same}; were it a score from 0 to 1, this would be wrong"
    return Finding("criterion", "warn", "one probability per text: two classes?", "a name or a loss that says so", why)


def _of_classes(module: nn.Module, C: int, first: dict[Kind, str], own: OwnLoss, insists: bool) -> list[Finding]:
    """Of one row of numbers per text."""
    others = {kind: text for kind, text in first.items() if kind != "classes"}
    why = ""
    if others and "classes" not in first:
        kind, text = next(iter(others.items()))
        why = f"its own loss is {text}, for {_MEANS[kind]}: cross-entropy of one class would be another objective"
    elif "classes" not in first and any(f.name == "own loss" and f.verdict == "warn" for f in own.findings):
        why = next(f.reason for f in own.findings if f.name == "own loss")
    elif "classes" not in first and (named := _named_otherwise(module, C)):
        why = f"{named} says so: no classes, which cross-entropy would take them for"
    if why and insists:
        return [Finding("criterion", "warn", f"{C} classes, as asked", "nothing against it", why)]
    if why:
        way = "; if they are classes all the same, anyformer.yaml settles it: call: family: classifier"
        return [Finding("criterion", "fail", f"{C} numbers per text, no classes", "one class per text", why + way)]
    if others and not insists and "problem_type" not in "".join(_source(c) for c in classes_of(module)):
        texts = ", ".join(others.values())
        why = f"its losses are {first['classes']} and {texts}; these numbers are trained with cross-entropy of classes"
        return [Finding("criterion", "warn", f"{C} classes?", "one loss, of classes", why)]
    if first or insists or _named_classes(module, C):
        return []
    why = "neither it nor its file names classes or a loss; were they scores or several labels, this would be wrong"
    return [Finding("criterion", "warn", f"{C} classes?", "a name or a loss that says so", why)]


def _of_tokens(plan: CallPlan, criteria: Criteria, insists: bool) -> list[Finding]:
    """Of logits at each position: what else than tokens they may be for."""
    found = {**criteria.file, **criteria.own}
    others = {kind: text for kind, text in found.items() if kind != "classes"}
    if not others or "classes" in found:
        return []
    kind, text = next(iter(others.items()))
    why = f"its own loss is {text}, for {_MEANS[kind]}; it would be trained with cross-entropy of one token per place"
    if insists:
        return [Finding("criterion", "warn", f"{plan.vocab_size:,} numbers per place, trained with {text}", "", why)]
    way = f"; if they are tokens all the same: call: family: {plan.family} in anyformer.yaml"
    return [Finding("criterion", "fail", f"{plan.vocab_size:,} numbers per place, no tokens", "tokens", why + way)]


def _named_otherwise(module: nn.Module, C: int) -> str:
    """A class, a head or a size by the name of something that is no class; "" where there is none."""
    for cls in classes_of(module):
        if _OTHER_CLASS.search(_LOGISTIC.sub("", cls.__name__)) and not _SAYS_CLASSES.search(cls.__name__):
            return f"class {cls.__name__}"
    for name, part in module.named_modules():
        head = isinstance(part, nn.Linear) and part.out_features == C and part.in_features != C
        if head and any(_OTHER_HEAD.search(step) for step in name.split(".")):
            return str(name)
    for key, value in vars(module).items():
        if _OTHER_SIZE.fullmatch(key) and (value == C or (isinstance(value, list | tuple) and len(value) == C)):
            return key
    return ""


def _named_classes(module: nn.Module, C: int) -> bool:
    """Class, file, a table of labels, a head, a count or an argument speaks of classes."""
    if any(_SAYS_CLASSES.search(c.__name__) for c in classes_of(module)):
        return True
    words = re.compile(r"class|(^|_)cls|label|intent|sentiment|topic|categor|emotion|nli", re.I)
    if any(words.search(p.name) for p in parameters_of(module)):
        return True
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and part.out_features == C and any(words.search(s) for s in name.split(".")):
            return True
        kept = {**vars(part), **getattr(held(part, "config"), "__dict__", {})}
        if any(words.search(key) and (value == C or _as_long(value, C)) for key, value in kept.items()):
            return True
    # a size that its constructor takes, or reads from a configuration
    return any(_COUNT.fullmatch(n) for cls in classes_of(module) for n in _names(_tree(_source(cls))))


def _as_long(value: object, C: int) -> bool:
    return isinstance(value, list | tuple | dict) and len(value) == C

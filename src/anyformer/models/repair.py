"""A corrected file for a model that cannot be called or sees the future, proven before it is shown as a diff."""

from __future__ import annotations

import difflib
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anyformer.core.errors import AnyformerError, CallError, SettingsError
from anyformer.core.findings import Finding
from anyformer.models.callplan import CallPlan, infer_call_plan
from anyformer.models.calls.culprit import TURNED
from anyformer.models.calls.evidence import gather
from anyformer.models.files.filetext import read_text
from anyformer.models.graph import derive_graph, needs_graph, run_graph
from anyformer.models.graphs.derive import Derived, Deriver
from anyformer.models.graphs.edits import (
    CallEdits,
    Edit,
    batch_first_edits,
    convolution_edits,
    head_call,
    mask_edits,
    softmax_edits,
    with_edits,
    with_forward,
)
from anyformer.models.graphs.order import TARGET_IDS
from anyformer.models.graphs.read import read_forward, self_attribute
from anyformer.models.probes import untouched
from anyformer.models.source import LoadedModel, load_model

_EQUAL = 1e-6
"""Largest difference allowed between the repaired file and the graph executor: float32, sums in the same order."""


@dataclass(frozen=True)
class Repair:
    """A proposed correction of a model's file. Nothing is written."""

    path: Path
    """The file that it is about."""
    source: str
    """The corrected text; the file's own where nothing is to be repaired."""
    diff: str
    """Unified diff; empty where nothing is to be repaired."""
    changes: tuple[str, ...]
    """Each change in words."""
    findings: tuple[Finding, ...]
    """How the corrected file was proven."""

    @property
    def needed(self) -> bool:
        """Whether there is anything to repair."""
        return bool(self.changes)


def repair_model(loaded: LoadedModel, *, config: dict[str, Any] | None = None) -> Repair:
    """Find what keeps a model from being trained, and correct its file: masks, axes, a builder export's dataflow.

    config: what load_model was given, for building the corrected class.
    Raises CallError where it cannot be repaired, saying why; what is returned was loaded, called and proven: causal,
    but for a classifier and an encoder.
    """
    path, text = _file_of(loaded)
    module = loaded.module
    if needs_graph(module) or _is_incomplete(module):
        return _repaired_graph(loaded, path, text, config)
    try:
        plan = infer_call_plan(module)
    except CallError as error:
        try:
            return _repaired_graph(loaded, path, text, config)
        except AnyformerError as second:
            raise CallError(error.what, f"{error.detail}\nand no repair was found: {second.what}", error.fix) from error
    bad = [f for f in plan.findings if f.verdict == "fail"]
    fine = plan.causal or plan.family == "encoder"
    if plan.family not in ("decoder", "encoder") and bad:
        raise CallError(f"{path.name} could not be repaired: {bad[0].name}: {bad[0].measured}", bad[0].reason)
    if plan.family not in ("decoder", "encoder") or (fine and not bad):
        return Repair(path, text, "", (), (Finding("repair", "ok", "nothing to repair", reason=_why_fine(plan)),))
    return _repaired_calls(loaded, path, text, plan, config)


def _why_fine(plan: CallPlan) -> str:
    family = {"classifier": "a classifier", "encoder": "an encoder"}.get(plan.family, plan.family)
    return "it is called right, and sees no later token" if plan.causal else f"{family} needs no causal mask"


def _file_of(loaded: LoadedModel) -> tuple[Path, str]:
    files = [path for path in loaded.sources.values() if path.suffix == ".py"]
    if not files:
        name = type(loaded.module).__module__
        found = getattr(sys.modules.get(name), "__file__", None)
        installed = tuple(sysconfig.get_path(key) for key in ("stdlib", "purelib"))
        if not found or not Path(found).is_file() or str(Path(found).resolve()).startswith(installed):
            raise CallError(
                f"{type(loaded.module).__name__} has no file that could be repaired",
                "it was given as a finished module",
                "give the path of its file: repair('model.py')",
            )
        files = [Path(found)]
    return files[0], read_text(files[0])


def _is_incomplete(module: nn.Module) -> bool:
    """Whether forward reads a name that nothing defines, or returns nothing."""
    try:
        source = read_forward(module)
    except CallError:
        return False
    import ast
    import builtins

    from anyformer.models.graphs.read import names_of

    arguments = source.forward.args
    given = {a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]}
    given |= {a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None}
    reads, _ = names_of(ast.Module(body=source.forward.body, type_ignores=[]))
    unknown = [n for n in reads if n not in given and n not in source.namespace and not hasattr(builtins, n)]
    returns = [n for n in ast.walk(source.forward) if isinstance(n, ast.Return)]
    return bool(unknown) or all(n.value is None for n in returns)


def save_repair(repair: Repair, target: Path | None, *, own: bool) -> Path:
    """Write the corrected text to a new file, or over the model's own where ``target`` is None; where it was written.

    The model's own file is kept beside it as .bak (.bak2 … where that exists). own: whether it is a file of the user's.
    Raises SettingsError for a target that exists and for a model that is not a file here.
    """
    if target is not None:
        if target.exists():
            raise SettingsError(
                f"{target} exists; a repair is written to a new file", fix="give another name, or --in_place true"
            )
        if not target.parent.is_dir():
            raise SettingsError(f"{target.parent} is no folder")
        target.write_text(repair.source, encoding="utf-8")
        return target
    if not own:
        raise SettingsError("the model is no file of yours, so it cannot be repaired in place", fix="--write FILE")
    backup, number = repair.path.with_name(repair.path.name + ".bak"), 1
    while backup.exists():
        number += 1
        backup = repair.path.with_name(f"{repair.path.name}.bak{number}")
    backup.write_bytes(repair.path.read_bytes())
    repair.path.write_text(repair.source, encoding="utf-8")
    return repair.path


# ---------------------------------------------------------------- builder exports


def _repaired_graph(loaded: LoadedModel, path: Path, text: str, config: dict[str, Any] | None) -> Repair:
    derived, causal = _derived(loaded.module)
    corrected = with_forward(text, derived)
    families = ("encoder_decoder",) if derived.target else ("decoder",) if causal else ("classifier", "encoder")
    module, plan = _proven(loaded, path, corrected, config, families)
    if module is None or not isinstance(plan, CallPlan):
        kind = " or ".join(families).replace("_", "-")
        raise CallError(f"{path.name} could not be repaired: what was derived is not a {kind}", str(plan))
    added = {f"{derived.head[0]}.weight"} if derived.head is not None else set()
    findings = [*_proofs(plan), _same_weights(loaded.module, module, added)]
    if derived.head is None:
        findings.append(_equal(loaded.module, module))
    return Repair(path, corrected, _diff(path, text, corrected), tuple(_changes_of(derived)), tuple(findings))


def _derived(module: nn.Module) -> tuple[Derived, bool]:
    """The dataflow, and whether its attention is causal: as the graph has it, by names where a head is missing."""
    source = read_forward(module, None)
    try:
        graph = derive_graph(module)
    except CallError:
        causal = not gather(module).says_encoder
        return Deriver(module, source, add_head=True, causal=causal).derive(), causal
    derived = Deriver(module, source, add_head=True, causal=graph.causal).derive()
    if derived.target != graph.target:
        derived = Deriver(module, source, add_head=True, causal=graph.causal, swapped=True).derive()
    return derived, graph.causal


def _changes_of(derived: Derived) -> Iterator[str]:
    arguments = derived.source.forward.args
    asked = [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
    inner = [a for a in asked if a.endswith("_output") or a == "positions"]
    taken = f"; {', '.join(inner)} {'are' if len(inner) > 1 else 'is'} computed inside" if inner else ""
    if inner or asked[1:2] != ["input_ids"]:
        two = "input_ids, target_ids, attention_mask=None, target_mask=None"
        yield f"forward takes ({two if derived.target else 'input_ids, attention_mask=None'}){taken}"
    for statement in derived.statements:
        made = statement.writes[0] if statement.writes else None
        if not statement.own and made is not None and made.kind not in ("aux", "input"):
            yield f"{made.final} is computed: {_right_side(statement.node)}"
        elif statement.own and statement.notes:
            name = next((m for m in map(self_attribute, _walk(statement.node)) if m), "forward")
            yield f"line {statement.line}, {name}: {'; '.join(statement.notes)}"
    if derived.head is not None:
        name, D, V = derived.head
        yield (
            f"self.{name} = {head_call(D, V)} is added: the projection from {D} to the {V:,} tokens of the embedding"
            f" was missing. It has weights of its own ({D * V:,}), not those of the embedding, and no bias; untrained"
        )
    if any(v.final != v.name for s in derived.statements for v in s.writes):
        yield "names that are overwritten got one name per value (x, x_v2, …), as earlier values are still needed"


def _right_side(node: Any) -> str:
    import ast

    return ast.unparse(node.value)


def _walk(node: Any) -> Iterator[Any]:
    import ast

    return ast.walk(node)


def _equal(original: nn.Module, repaired: nn.Module) -> Finding:
    """The repaired forward against the graph executor on the original, with the same weights."""
    graph = derive_graph(original)
    T = min(8, graph.positions or 8)
    rows = min(m.num_embeddings for m in original.modules() if isinstance(m, nn.Embedding))
    device = next(original.parameters()).device
    ids = torch.randint(0, rows, (2, T), generator=torch.Generator().manual_seed(0)).to(device)
    target = ids.flip(1)[:, 1:] if graph.target else None
    second = {} if target is None else {TARGET_IDS: target}
    repaired.to(device)
    with untouched(original), untouched(repaired), torch.no_grad():
        original.eval()
        repaired.eval()
        worst = float((run_graph(original, graph, ids, None, target) - repaired(ids, **second)).abs().max())
    if not worst <= _EQUAL:
        raise CallError(
            f"the repaired file differs from the derived graph by {worst:.2g}", f"at most {_EQUAL} is allowed"
        )
    return Finding("equal", "ok", f"the same logits as the derived graph ({worst:.0e})", f"≤ {_EQUAL:.0e}")


# ---------------------------------------------------------------- missing masks and axes


def _repaired_calls(
    loaded: LoadedModel, path: Path, text: str, plan: CallPlan, config: dict[str, Any] | None
) -> Repair:
    """The first set of edits after which the model is causal and its rows are independent."""
    if any(TURNED in finding.reason for finding in plan.findings):
        raise CallError(
            f"{path.name} could not be repaired: {TURNED}",
            "a causal mask beside it would leave each position nothing to choose from",
            "turn it where it is made or read: 0 and -inf are to be added, masked_fill(mask == 0, …) wants 1 = keep",
        )
    module = loaded.module
    tried: list[str] = []
    for edits, changes in _candidates(text, module):
        corrected = with_edits(text, edits)
        repaired, result = _proven(loaded, path, corrected, config, (plan.family,))
        if repaired is None or not isinstance(result, CallPlan):
            tried.append(f"{'; '.join(changes)}: {result}")
            continue
        findings = (*_proofs(result), _same_weights(module, repaired, set()))
        note = (
            []
            if plan.causal or plan.family == "encoder"
            else ["if this is meant as an encoder, it is right as it was: --objective masked"]
        )
        return Repair(path, corrected, _diff(path, text, corrected), (*changes, *note), findings)
    problem = next((f.measured for f in plan.findings if f.verdict in ("fail", "warn")), "it cannot be trained")
    detail = "tried:\n" + "\n".join(tried) if tried else "no attention call without a mask was found in its file"
    reasons = [f.reason for f in plan.findings if f.name == "causality" and f.verdict in ("fail", "warn")]
    masks = "give its attention a causal mask by hand"
    ways = [*reasons, *([] if "on the left" in "".join(reasons) else [masks])]
    ways += [] if "--objective masked" in "".join(reasons) else ["if it is meant as an encoder: --objective masked"]
    raise CallError(f"{path.name} could not be repaired: {problem}", detail, "\n".join(ways))


def _candidates(text: str, module: nn.Module) -> Iterator[tuple[list[Edit], list[str]]]:
    axes = batch_first_edits(text, module)
    masks, masks_first = mask_edits(text, module, batch_first=False), mask_edits(text, module, batch_first=True)
    scores, moved = softmax_edits(text, module), convolution_edits(text, module)
    sets: list[tuple[CallEdits, ...]] = [(masks,), (axes,), (axes, masks_first), (scores,), (masks, scores)]
    sets += [(axes, masks_first, scores), (moved,), (moved, masks), (moved, scores), (moved, masks, scores)]
    seen: list[list[Edit]] = []
    for parts in sets:
        edits = [edit for part in parts for edit in part.edits]
        if edits and edits not in seen and all(part.edits for part in parts):
            seen.append(edits)
            yield edits, [change for part in parts for change in part.changes]


# ---------------------------------------------------------------- proofs


def _proven(
    loaded: LoadedModel,
    path: Path,
    corrected: str,
    config: dict[str, Any] | None,
    families: tuple[str, ...] = ("decoder",),
) -> tuple[nn.Module | None, CallPlan | str]:
    """Load the corrected file in a folder of its own, beside copies of what it imports; its proven plan, or why not."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / next((n for n, file in loaded.sources.items() if file == path), path.name)
        for name, file in loaded.sources.items():
            place = Path(folder) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
        target.write_text(corrected, encoding="utf-8")
        try:
            module = load_model(f"{target}:{type(loaded.module).__name__}", config=config).module
            plan = infer_call_plan(module)
        except AnyformerError as error:
            return None, str(error).replace(folder, "")
    bad = [f for f in plan.findings if f.verdict == "fail" or (f.name == "past" and f.verdict == "warn")]
    if plan.family not in families or plan.causal != plan.family.endswith("decoder") or bad:
        left = next((f for f in [*bad, *plan.findings] if f.verdict in ("fail", "warn")), None)
        return (
            None,
            "not causal" if left is None else f"{left.measured} ({left.reason})" if left.reason else left.measured,
        )
    return module, plan


def _proofs(plan: CallPlan) -> list[Finding]:
    return [
        f
        for f in plan.findings
        if f.name in ("tokens", "logits", "causality", "batch", "repeat", "positions", "mask", "family", "source")
    ]


def _same_weights(original: nn.Module, repaired: nn.Module, added: set[str]) -> Finding:
    """That the state dict's names are unchanged but for what was added; the weights are copied over."""
    result = repaired.load_state_dict(original.state_dict(), strict=False)
    if result.unexpected_keys or set(result.missing_keys) != added:
        raise CallError(
            "the repaired class has other weights than the original",
            f"missing: {', '.join(result.missing_keys) or 'none'};"
            f" unexpected: {', '.join(result.unexpected_keys) or 'none'}",
        )
    names = f"; added: {', '.join(sorted(added))}" if added else ""
    return Finding(
        "weights", "ok", f"the same {len(original.state_dict())} names{names}", reason="saved weights still fit"
    )


def _diff(path: Path, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"{path.name}", f"{path.name} (repaired)"
    )
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)

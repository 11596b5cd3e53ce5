"""The call plan: how a module is called and where its logits are. ``calling.call_logits`` carries it out.

B batch, T time (source), S time (target), V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from anyformer.core.findings import Finding
from anyformer.models.graph import Graph

LogitsPath = tuple[str | int, ...]
OutputKind = Literal["logits", "log-probabilities", "probabilities"]
Family = Literal["decoder", "encoder", "encoder_decoder", "classifier"]
Objective = Literal["causal", "masked", "seq2seq", "classification"]
Layout = Literal["BTV", "TBV", "NV", "MV", "BVT", "B", "last"]
"""N is B·T, in the order in which the ids were given: T varies fastest where they are (B, T). M is the other order.
B: one number per text, z: the logits of its two classes are (0, z), whose cross-entropy is the binary one of z."""
Alignment = Literal["next", "short", "long", "own"]
# fmt: off
Role = Literal[
    "tokens", "mask", "causal_mask", "positions", "segments", "lengths", "padding_id", "documents", "state", "constant",
    "target_ids", "target_mask", "target_causal_mask", "target_lengths", "memory", "memory_mask",
]
# fmt: on
MaskForm = Literal["keep", "masked", "additive"]
OBJECTIVES: dict[Family, Objective] = {
    "decoder": "causal",
    "encoder": "masked",
    "encoder_decoder": "seq2seq",
    "classifier": "classification",
}


@dataclass(frozen=True)
class Argument:
    """What one parameter is given at every call."""

    name: str
    role: Role
    """tokens: the ids. mask: padding of the source. causal_mask: position t may look at ≤ t, with the padding where the
    shape has a B. target_…: the same for the decoder's input. memory: what the method before gave. memory_mask: padding
    of the source, where the decoder takes it. lengths: tokens that are no padding, (B,). padding_id: the one id that
    masked tokens have; where none is masked, one that no token has. documents: 0, 1, 2 … in the documents of a row.
    constant: ``value``.
    state: what the module's own method ``value`` makes for B rows."""
    shape: str = "BT"
    """Axes in order: B, T (S for target_ roles, positions of the target and the last axis of memory masks), 1, N (a
    row of B for each of ``value`` heads); "" for a constant; of a constant with axes, a tensor full of it."""
    dtype: str = "int64"
    """int64, bool or float32."""
    form: MaskForm = "keep"
    """keep: 1 = may be looked at. masked: 1 = may not. additive: 0 and -inf."""
    value: Any = None
    """Of a constant: None, a bool, a number or a string; of a state, the method's name; of a mask (N, T, T), heads; of
    documents and segments, the number of the first."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Argument:
        """Back from JSON."""
        if record["role"] not in get_args(Role):
            raise ValueError(f"an argument has no role {record['role']!r}")
        return cls(**record)

    def text(self) -> str:
        """In words: "mask (B, T) bool, 1 = masked"."""
        if self.role == "state":
            return f"{self.name} = {self.value}(B)"
        if self.role == "constant":
            full = f", a tensor ({', '.join(self.shape)})" if self.shape else ""
            return f"{self.name} = {self.value!r}{full}"
        if self.role == "padding_id":
            return f"{self.name} = the padding's id"
        axes = ", ".join(self.shape) + ("," if len(self.shape) == 1 else "")
        words = {"keep": "1 = keep", "masked": "1 = masked", "additive": "-inf = masked"}
        polarity = f", {words[self.form]}" if "mask" in self.role else ""
        causal = ", causal" if "causal" in self.role else ""
        number = f", all {self.value}" if self.role == "segments" and self.value else ""
        return f"{self.name} ({axes}) {self.dtype}{polarity}{causal}{number}"


@dataclass(frozen=True)
class MethodCall:
    """One method of a module that has no usable forward: encode, decode, project."""

    name: str
    arguments: tuple[Argument, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        return {"name": self.name, "arguments": [a.to_dict() for a in self.arguments]}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> MethodCall:
        """Back from JSON."""
        return cls(record["name"], tuple(Argument.from_dict(a) for a in record["arguments"]))


@dataclass(frozen=True)
class CallPlan:
    """How to get logits out of a module, each line proven by running it.

    Logits are (B, T, V) of a decoder or encoder, (B, S, V) of an encoder-decoder, (B, C) of a classifier.
    """

    token_arg: str
    """Parameter that takes the ids (B, T) int64; with a leading * they are passed as the first positional argument."""
    mask_arg: str | None
    """Parameter that takes the padding mask; None where none was proven."""
    targets_arg: str | None
    """Parameter that takes (B, T) int64 targets."""
    needs_targets: bool
    """Whether all positions' logits come only when targets are given."""
    logits_path: LogitsPath
    """(): the output itself; (0,): first of a tuple; ("logits",): a dict's key or an object's attribute."""
    vocab_size: int
    """V, the width of the logits; C of a classifier."""
    embedding_rows: int | None
    """Ids must be below this; None where no limit was found."""
    max_positions: int | None
    """Longest T that runs; None where no limit was found up to what was tried."""
    family: Family
    causal: bool
    """Whether the logits at t were seen not to depend on (target) tokens after t. False of a decoder: it leaks."""
    findings: tuple[Finding, ...]
    kind: OutputKind = "logits"
    """What the module gives at logits_path; probabilities become logits by their logarithm."""
    needs_mask: bool = False
    """Whether the mask has no default, so that one of ones is passed where the caller has none."""
    mask_shape: str = "BT"
    """Axes of the padding mask: BT, B11T, B1TT, BTT, TB …; T may stand twice, both for the same tokens."""
    mask_dtype: str = "int64"
    mask_form: MaskForm = "keep"
    extras: tuple[Argument, ...] = ()
    """Further arguments: positions, segments, lengths, causal masks, constants, those of the decoder."""
    time_first: bool = False
    """Whether ids (and targets, segments) go in as (T, B)."""
    layout: Layout = "BTV"
    """Axes of what lies at logits_path. last: (B, V) or (B, 1, V), of the last position alone; those of each position
    come from a call of the ids up to it."""
    logits_from: str = "output"
    """output; attribute:NAME, set on the module by the call; loss: what its own cross-entropy is computed from."""
    head: str | None = None
    """Submodule or method that makes logits of the hidden states at logits_path, where forward leaves that out."""
    alignment: Alignment = "next"
    """next: logits[t] are for token t + 1. short: as next, but the last position is dropped inside. long: as next,
    behind one more at the front, of a start that is put before the first token inside. own: for token t itself,
    which is shifted right inside. (An encoder's and a classifier's are "next" too: nothing is shifted.)"""
    target_arg: str | None = None
    """Parameter that takes the decoder's input (B, S) int64, beginning with the start token; encoder-decoders only."""
    target_vocab: int | None = None
    """Ids of the decoder's input must be below this; None where no limit was found."""
    methods: tuple[MethodCall, ...] = ()
    """Called one after the other instead of forward; the last one's output holds the logits."""
    longest_first: bool = False
    """Whether rows go in sorted by their lengths, the longest first; logits come back in the batch's order."""
    packed: str = ""
    """"T": ids go in as (T,), "1T": as (1, T), one row of a batch after the other; empty where a batch goes in."""
    graph: Graph | None = None
    """The dataflow of a builder export whose forward asks for its own intermediate results."""
    only_length: int | None = None
    """The one T that runs, where the module takes no other."""
    only_rows: int | None = None
    """The one B that runs, where the module takes no other: fewer rows are filled up, of more so many go in."""
    document_start: int | None = None
    """Id from which on a new document begins in a row: masks (B, T, T) hide the others, positions begin anew, and an
    argument of the role documents is given the number of each token's own."""

    @property
    def objective(self) -> Objective:
        """What a model of this family is trained on."""
        return OBJECTIVES[self.family]

    @property
    def reads_one_more(self) -> bool:
        """Whether a sequence goes in with one more token, whose value plays no part in the logits that are kept."""
        return self.alignment in ("short", "own")

    @property
    def causal_by_mask(self) -> bool:
        """Whether causality is ours to give, by a mask or a flag, and not the module's own."""
        flags = any(
            a.role == "constant" and a.value is True and ("causal" in a.name or "future" in a.name) for a in self.extras
        )
        return flags or any("causal_mask" in a.role for a in self.extras)

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            **record,
            "logits_path": list(self.logits_path),
            "findings": [f.to_dict() for f in self.findings],
            "extras": [a.to_dict() for a in self.extras],
            "methods": [m.to_dict() for m in self.methods],
            "graph": None if self.graph is None else self.graph.to_dict(),
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> CallPlan:
        """Back from JSON; an unknown key raises TypeError, a missing one without a default KeyError or TypeError."""
        unknown = record.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise TypeError(f"a call plan has no {', '.join(sorted(unknown))}")
        graph = record.get("graph")
        read: dict[str, Any] = {
            "logits_path": tuple(record["logits_path"]),
            "findings": tuple(Finding.from_dict(f) for f in record["findings"]),
            "extras": tuple(Argument.from_dict(a) for a in record.get("extras", ())),
            "methods": tuple(MethodCall.from_dict(m) for m in record.get("methods", ())),
            "graph": None if graph is None else Graph.from_dict(graph),
        }
        return cls(**{**record, **read})


def follow(output: Any, path: LogitsPath) -> Any:
    """What lies at the path inside the output; None where there is no such place."""
    for step in path:
        if isinstance(step, int):
            output = output[step] if isinstance(output, list | tuple) and step < len(output) else None
        elif isinstance(output, Mapping):
            output = output.get(step)
        else:
            output = getattr(output, step, None)
    return output


def path_text(path: LogitsPath) -> str:
    """The path in words: "the output", "output[0]", "output.logits"."""
    if not path:
        return "the output"
    return "output" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)

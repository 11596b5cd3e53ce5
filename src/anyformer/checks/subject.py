"""A module under check: how it is called, small batches for it, and the limits that it is held to.

B batch, T time, S time of the target, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from anyformer.core.protocols import View
from anyformer.core.view import QuietView
from anyformer.models.calls.calm import calm
from anyformer.models.calls.overrides import stated
from anyformer.models.calls.probing import Prober, difference, high, target_high, tolerance, woken
from anyformer.models.files.limits import available_memory
from anyformer.models.inputs import Inputs
from anyformer.models.plan import CallPlan
from anyformer.models.probes import set_mode
from anyformer.models.source import LoadedModel

_TOKENS = 12
"""Of an ordinary batch, where the module takes as many: few, so that a check of a large model takes seconds."""


@dataclass(frozen=True)
class Limits:
    """Where ok ends. Each value with its source."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Each behaviour is measured on so many batches; the checks' design asks for three or more."""
    share: float = 1e-4
    """Of the usual logit: what two ways to one result may differ by in float32 (a thousand times its 1.2e-7)."""
    start: float = 0.75
    """Nats that the loss of fresh weights may be off ln V. N(0, 0.02) gives 0.0 to 0.4 at widths up to 1,024."""
    widest: float = 0.7
    """Standard deviation of a weight matrix from which on it counts as large: N(0, 1) is torch's for embeddings alone;
    torch.nn.Linear draws with 1/√(3 · fan-in), which is below 0.3 from four inputs on."""
    scale: float = 2.0
    """Times 1/√K that scores of attention may be larger; 1 is usual, √K is what a forgotten scale gives."""
    likeness: float = 0.3
    """Correlation of a block's output with its input from which on the input counts as passed on: right models of
    benchmarks/mutants have 0.91 or more, those whose residual was dropped 0.10 or less."""
    steps: int = 300
    """Steps of a copy in which a small model learns a task; right ones of two layers take 30 to 150."""
    heart: float = 0.1
    """Of its first loss: what a model that has learned two texts by heart has left, at most."""
    beaten: float = 0.15
    """Nats below the loss of a guess that no model gets to on fresh noise; means of 20 batches scatter by 0.02."""
    learned: float = 0.85
    """Of the loss of a guess: what a model that has found the answer to a task is below."""
    carried: float = 0.2
    """Of the logits' spread, by which 1 % of noise at the embedding may move them; right models of benchmarks/mutants
    have 0.0004 to 0.02."""
    colab: float = 12e9
    """Bytes of a free GPU in a notebook: what a beginner has."""
    batch: int = 16
    """Sequences of a batch whose memory is estimated: the default of a run."""
    longest: int = 4096
    """Tokens of the longest sequence that is tried."""


@dataclass(frozen=True)
class Trials:
    """What tier 3 trains on, and for how long."""

    data: str | None = None
    """Text to fine-tune on; the Python standard library's sources where not given, for a model that writes text."""
    target_data: str | None = None
    """The texts to write, line by line, of an encoder-decoder."""
    steps: int = 200
    """Optimizer steps of each run."""
    tasks: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(("wikitext2", "sst2")))
    """Benchmark → a file or folder with its data; None: from the hub."""


@dataclass
class Subject:
    """What the checks run on. ``module`` is as the user has it; ``awake`` has noise where whole tensors are zero."""

    module: nn.Module
    plan: CallPlan
    awake: nn.Module
    prober: Prober
    """Of ``awake``."""
    loaded: LoadedModel | None
    """Where the module came from; None of a bare module."""
    trained: bool
    """Whether its weights are no fresh ones: what assumes these does not apply."""
    limits: Limits = field(default_factory=Limits)
    trials: Trials = field(default_factory=Trials)
    view: View = field(default_factory=QuietView)
    """Where long checks show how far they are."""

    @classmethod
    def of(
        cls,
        module: nn.Module,
        plan: CallPlan,
        *,
        loaded: LoadedModel | None,
        trained: bool,
        limits: Limits,
        trials: Trials,
        view: View,
    ) -> Subject:
        """Ready to be checked, in eval mode. Raises what the module raises at the plan's call."""
        set_mode(module, False)
        awake, _, _ = woken(module)
        set_mode(awake, False)
        prober = Prober(awake)
        T = plan.only_length or min(plan.max_positions or _TOKENS, _TOKENS)
        # of a module of one length both are that; else no two are equal, so that no axis is taken for another
        other = T if plan.only_length else max(2, T - 1)
        prober.sizes = ((2, T, max(2, T - 2)), (3, other, T))
        return cls(module, plan, awake, prober, loaded, trained, limits, trials, view)

    @property
    def declared(self) -> frozenset[str]:
        """What the design is meant to do: ``call: declares:`` of anyformer.yaml."""
        return stated(self.loaded.overrides).declared if self.loaded is not None else frozenset()

    def copies(self, count: int) -> list[nn.Module]:
        """Copies of the awake module. Raises what deepcopy raises."""
        return [copy.deepcopy(self.awake) for _ in range(count)]

    @property
    def place(self) -> str:
        """From where a loaded model is built again, class and all."""
        assert self.loaded is not None
        origin = self.loaded.provenance
        if origin.kind not in ("file", "folder"):
            return origin.location
        return f"{next(iter(self.loaded.sources.values()))}:{origin.class_name}"

    def no_room(self, bytes_each: int) -> str:
        """Why there is no memory for so many bytes more for each parameter; "" where there is."""
        needed, free = bytes_each * self.parameters(), available_memory()
        if free is None or 1.5 * needed < free:
            return ""
        return f"another {needed / 1e9:.1f} GB would be needed, {free / 1e9:.1f} GB are free"

    @property
    def length(self) -> int:
        """Tokens of an ordinary batch."""
        return self.plan.only_length or min(self.plan.max_positions or _TOKENS, _TOKENS)

    @property
    def ids(self) -> int:
        """Ids of the text whose positions the logits belong to are below this."""
        return target_high(self.plan) if self.two else high(self.plan)

    @property
    def writes(self) -> bool:
        """Whether it gives logits for every position of a text."""
        return self.plan.family != "classifier"

    @property
    def decodes(self) -> bool:
        """Whether no logit may depend on a later token."""
        return self.plan.family in ("decoder", "encoder_decoder")

    @property
    def two(self) -> bool:
        """Whether a second text, the decoder's input, goes in."""
        return self.plan.family == "encoder_decoder"

    def training(self) -> AbstractContextManager[None]:
        """Training mode of the awake module, dropout apart."""
        return self.training_of(self.awake)

    @contextmanager
    def training_of(self, module: nn.Module) -> Iterator[None]:
        """The same of any module."""
        modes = [(m, m.training) for m in module.modules()]
        recurrent = [(m, m.dropout) for m, _ in modes if isinstance(m, nn.RNNBase)]  # it is no submodule there
        try:
            for part, _ in modes:
                part.training = not isinstance(part, nn.modules.dropout._DropoutNd)
            for rnn, _ in recurrent:
                rnn.dropout = 0.0
            with calm():
                yield
        finally:
            for part, mode in modes:
                part.training = mode
            for rnn, dropout in recurrent:
                rnn.dropout = dropout

    def batch(self, seed: int, B: int = 3, T: int | None = None) -> Inputs:
        """Random ids (B, T), and (B, T) of the target."""
        T = T or self.length
        return self.prober.inputs(self.plan, B, T, 100 + seed, T)

    def logits(self, inputs: Inputs, *, seed: int = 0) -> Tensor:
        """Logits of the awake module, without gradients; raises what the module raises."""
        return self.prober.logits(self.plan, inputs, seed=seed)

    def read(self, inputs: Inputs) -> Tensor:
        """The text whose positions the logits belong to, (B, T)."""
        return inputs.target_ids if inputs.target_ids is not None else inputs.input_ids

    def with_read(self, inputs: Inputs, ids: Tensor) -> Inputs:
        """The inputs with another such text."""
        return replace(inputs, target_ids=ids) if inputs.target_ids is not None else replace(inputs, input_ids=ids)

    def apart(self, first: Tensor, second: Tensor) -> float:
        """Their largest difference, in tolerances; infinite where shapes differ."""
        if first.shape != second.shape:
            return float("inf")
        return float(difference(first, second).max()) / tolerance(first, self.limits.share)

    def parameters(self) -> int:
        """Numbers that are trained or frozen, each once."""
        return sum(p.numel() for p in {id(p): p for p in self.module.parameters()}.values())

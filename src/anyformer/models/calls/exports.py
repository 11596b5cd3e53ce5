"""Builder exports whose forward asks for its own intermediate results: called by their dataflow."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from anyformer.models.calls.failures import nothing_found
from anyformer.models.calls.locating import Found, blank, locate
from anyformer.models.calls.names import parameters_of, token_candidates
from anyformer.models.calls.overrides import Stated
from anyformer.models.calls.probing import Prober
from anyformer.models.graph import derive_graph
from anyformer.models.plan import Objective


def by_graph(prober: Prober, said: Stated, objective: Objective | None) -> Found:
    """The dataflow of a builder export whose forward asks for its own intermediate results."""
    module = prober.module
    encoder = objective in ("masked", "classification") or said.family in ("encoder", "classifier")
    decoder = objective == "causal" or said.family == "decoder"
    graph = derive_graph(module, causal=False if encoder else True if decoder else None)
    plan = replace(blank(_graph_tokens(module, graph.target), ()), graph=graph)
    if graph.target:
        plan = replace(plan, family="encoder_decoder", target_arg=graph.target)
    found, failure = locate(prober, plan, said)
    if found is not None and graph.target and found.place.use != "sequence":
        found, failure = None, f"{graph.target} as the decoder's input: no logits (B, S, V), one per token of it"
    if found is None:
        raise nothing_found(prober, parameters_of(module), [failure], said)
    return found


def _graph_tokens(module: nn.Module, target: str) -> str:
    names = [p.name for p in parameters_of(module) if p.name != target]
    likely = [n for n in names if "token" in n or n.startswith("input")]
    return next(iter([*likely, *token_candidates(parameters_of(module)), *names]), "input_ids")

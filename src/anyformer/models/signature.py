"""What a module's forward() asks for, read from its signature."""

from __future__ import annotations

import inspect
import re
from typing import Any

from torch import nn

_NODE_OUTPUT = re.compile(r"(?!input_)[A-Za-z]\w*_\d+_outputs?")
"""``{node}_{index}_output``, as visual builders name what one node hands to the next."""


def forward_parameters(module: nn.Module) -> list[inspect.Parameter]:
    """Parameters of the module's forward(), of the wrapped one for a torch.compile'd module."""
    target = getattr(module, "_orig_mod", module)
    return list(inspect.signature(target.forward).parameters.values())


class ModelSignatureInspector:
    """Reads the signature of a module's forward(); it never runs the module (infer_call_plan does)."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._parameters = forward_parameters(model)

    def get_parameters(self) -> list[str]:
        """Names of all parameters, in order."""
        return [p.name for p in self._parameters]

    def get_required_params(self) -> list[str]:
        """Names of the parameters without a default."""
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return [p.name for p in self._parameters if p.default is inspect.Parameter.empty and p.kind not in variadic]

    def get_node_outputs(self) -> list[str]:
        """Names of the required parameters that name a node's output, mhsa_0_output; attention_mask is none."""
        return self._intermediates()

    def requires_intermediate_outputs(self) -> bool:
        """Whether a required parameter names another node's output (``mhsa_0_output``).

        A name that merely begins like one, as attention_mask does, does not count.
        """
        return bool(self._intermediates())

    def is_simple_signature(self) -> bool:
        """Whether one argument is all it needs."""
        return len(self.get_required_params()) == 1 and not self.requires_intermediate_outputs()

    def get_signature_info(self) -> dict[str, Any]:
        """Everything above in one JSON-serialisable dict, with defaults and annotations as text."""
        return {
            "parameters": self.get_parameters(),
            "required": self.get_required_params(),
            "defaults": {p.name: repr(p.default) for p in self._parameters if p.default is not p.empty},
            "annotations": {
                p.name: inspect.formatannotation(p.annotation)
                for p in self._parameters
                if p.annotation is not inspect.Parameter.empty
            },
            "intermediate_outputs": self._intermediates(),
            "requires_intermediate_outputs": self.requires_intermediate_outputs(),
            "is_simple": self.is_simple_signature(),
        }

    def _intermediates(self) -> list[str]:
        return [name for name in self.get_required_params() if _NODE_OUTPUT.fullmatch(name)]

"""The id of padding, as a model's file and its embeddings have it."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from anyformer.models.building import aliases

_PADDING = ("pad_id", "src_pad_id", "tgt_pad_id")


def rows_for_padding(text: str) -> int:
    """How many ids a vocabulary has at least that has the one which the file writes down for padding."""
    return max((int(n) for n in re.findall(r"\bpadding_idx\s*=\s*(\d+)", text)), default=-1) + 1


def pads_otherwise(
    module: nn.Module, used: dict[str, Any], given: dict[str, Any], asked: dict[str, Any]
) -> dict[str, int]:
    """The constructor's ids of padding that nobody stated, as the module's embeddings have it, where those differ.

    used: what it was built with. given, asked: what the configuration and the caller state.
    """
    rows = {m.padding_idx for m in module.modules() if isinstance(m, nn.Embedding)} - {None}
    known = given.keys() | asked.keys()
    roles = aliases.roles(used)
    ours = [k for k in used if roles.get(k) in _PADDING and k not in known and type(used[k]) is int]
    if len(rows) != 1 or not ours:
        return {}
    own = rows.pop()
    return {k: own for k in ours if own is not None and used[k] != own}

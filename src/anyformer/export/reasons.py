"""What stood in the way of an export, in one sentence, with the line of the model's file and what would help."""

from __future__ import annotations

import re
from collections.abc import Iterator

from anyformer.core.errors import ExportError
from anyformer.models.blame import blame

_PLACE = re.compile(r"^\S+\.py:\d+: ")
_OP = re.compile(r"(?:aten|prims|torchvision|torch_scatter)(?:\.|::)[A-Za-z_0-9.]+")
_HELP = (
    (
        r"data-dependent|GuardOnDataDependent|\.item\(\)|aten\.(?:_local_scalar_dense|item)",
        "a branch or a size there hangs on a tensor's values: torch.where in place of if, or sizes from .shape",
    ),
    (r"nonzero", "how many results there are hangs on values: multiply with a mask in place of picking what it marks"),
    (
        r"[Cc]onstraint|specializ|inferred a static shape",
        "a length or a batch size is fixed there, as a number in a view or a loop: take it from .shape",
    ),
    (r"complex", "complex numbers have no form there: rotate with sin and cos in place of view_as_complex"),
)


def reason(error: Exception) -> ExportError:
    """The innermost cause: what, where, and what would help where that is known."""
    chain = list(_chain(error))
    words = next((line for one in reversed(chain) if (line := _first(one))), type(error).__name__)
    whole = "\n".join(str(one) for one in chain)
    op = next(iter(_OP.findall(whole)), "")
    where = next((line for one in reversed(chain) if _PLACE.match(line := blame(one).partition("\n")[0])), "")
    fix = next((text for pattern, text in _HELP if re.search(pattern, whole)), "")
    detail = "\n".join(part for part in (where, f"operation {op}" if op and op not in words else "") if part)
    return ExportError(words[:300], detail, fix)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()]
    lines = [
        line
        for line in lines
        if line and not line.startswith(("Failed to", "This is step", "- ", "Next steps", "#", "⬇"))
    ]
    return f"{type(error).__name__}: {lines[0]}" if lines else ""

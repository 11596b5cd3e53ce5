"""A state dict in one safetensors file, tied weights stored once; and state made of plain types only."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anyformer.core.errors import CheckpointError

# the safetensors format's codes; a tensor of any other dtype travels in state.pt
_CODES = {
    getattr(torch, name): code
    for name, code in (
        *(("float64", "F64"), ("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16"), ("bool", "BOOL")),
        *(("float8_e4m3fn", "F8_E4M3"), ("float8_e5m2", "F8_E5M2"), ("complex64", "C64")),
        *(("int64", "I64"), ("int32", "I32"), ("int16", "I16"), ("int8", "I8")),
        *(("uint64", "U64"), ("uint32", "U32"), ("uint16", "U16"), ("uint8", "U8")),
    )
    if hasattr(torch, name)
}


def write_tensors(path: Path, state_dict: dict[str, Any], *, prefix: str) -> tuple[list[str], str]:
    """Write the tensors of a module's state dict to ``path``.

    Returns the names that the format cannot hold, and the SHA-256 that the file has if it holds the tensors as they are
    in memory: whoever reads the file back compares.

    Names that are one and the same memory (tied weights) are stored once; the others are aliases in the metadata, as
    is ``prefix``, which the names had before. Raises RuntimeError or OSError where the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    left: list[str] = []
    seen: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, value in state_dict.items():
        if not isinstance(value, Tensor) or value.dtype not in _CODES or value.layout != torch.strided:
            left.append(name)
            continue
        tensor = value.detach()
        storage = tensor.untyped_storage().data_ptr()
        key = (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype, str(tensor.device))
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        on_cpu = tensor.cpu().contiguous()
        # different views of one storage (a slice, a transpose): copies, the format knows no views
        overlaps = storage in storages or on_cpu.untyped_storage().nbytes() != on_cpu.numel() * on_cpu.element_size()
        tensors[name] = on_cpu.clone() if overlaps else on_cpu
        storages.add(storage)
    metadata = {"format": "pt", "prefix": prefix, "aliases": json.dumps(aliases)}
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # derives from Exception alone
        raise RuntimeError(str(error)) from error
    return left, _expected_sha256(path, tensors, metadata)


def _expected_sha256(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Of the header as it stands in the file, once it proved to say what was asked, and the tensors' own memory."""
    with path.open("rb") as stream:
        length = stream.read(8)
        header = stream.read(int.from_bytes(length, "little"))
    try:
        said = json.loads(header)
        told = said.pop("__metadata__")
        order = sorted(said, key=lambda name: said[name]["data_offsets"])
        kinds = {name: (entry["dtype"], entry["shape"]) for name, entry in said.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError(f"the header of {path.name} does not read back as it was written: {error}") from error
    if told != metadata or kinds != {name: (_CODES[t.dtype], list(t.shape)) for name, t in tensors.items()}:
        raise RuntimeError(f"the header of {path.name} does not read back as it was written")
    digest = hashlib.sha256(length + header)
    for name in order:
        if tensors[name].numel():
            digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """What ``write_tensors`` wrote: the tensors on the CPU, aliases being the same tensor again, and the prefix."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise RuntimeError(f"{path.name}: {error}") from error
    for alias, name in json.loads(metadata.get("aliases", "{}")).items():
        tensors[alias] = tensors[name]
    return tensors, metadata.get("prefix", "")


def plain(value: Any, where: str = "", tensor: Callable[[Tensor], Any] = Tensor.detach) -> Any:
    """``value`` with plain types only, so that ``torch.load(weights_only=True)`` reads it back.

    Paths become str, enums their values, NumPy scalars Python's, NumPy arrays tensors, dataclasses and mappings dicts;
    tensor: what becomes of the tensors.
    Raises CheckpointError, naming the place, for any other object: it could not be loaded without running code.
    """
    if isinstance(value, enum.Enum):
        return plain(value.value, where, tensor)
    if value is None or type(value) in (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size):
        return value
    if isinstance(value, Tensor):
        return tensor(value)
    if isinstance(value, dict):
        return {plain(key, where): plain(item, f"{where}/{key}", tensor) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [plain(item, f"{where}/{index}", tensor) for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items) if isinstance(value, tuple) else set(items)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (int, float, str)):  # subclasses that add only behaviour
        base = int if isinstance(value, int) else float if isinstance(value, float) else str
        return base(value)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value), where, tensor)
    raise CheckpointError(
        f"the training state holds a {type(value).__qualname__} at {where.strip('/') or 'the top'}",
        detail="a checkpoint holds tensors and plain values only, so that loading one never runs code",
        fix="give state_dict() of that object plain values, or leave it out of save_hyperparameters()",
    )


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of a training state that no later step changes: plain types, and tensors in CPU memory of their own.

    Tensors that share memory (tied weights, views) share it in the copy, too. Raises CheckpointError as ``plain``.
    """
    memories: dict[tuple[str, int, int], torch.UntypedStorage] = {}

    def copy(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if not _is_simple(tensor):  # sparse, quantized, of a library's own class
            return tensor.clone() if tensor.device.type == "cpu" else tensor.cpu()
        memory = tensor.untyped_storage()
        if _key(memory) not in memories:
            room = torch.UntypedStorage(memory.nbytes())  # type: ignore[no-untyped-call]
            memories[_key(memory)] = room.copy_(memory, False)
        of = memories[_key(memory)]
        return torch.empty(0, dtype=tensor.dtype).set_(of, tensor.storage_offset(), tensor.shape, tensor.stride())

    return dict(plain(state, tensor=copy))


def size_of(state: dict[str, Any]) -> int:
    """Bytes that ``copied`` takes: of the tensors, what they share once."""
    sizes: dict[Any, int] = {}

    def count(tensor: Tensor) -> None:
        if _is_simple(tensor):
            memory = tensor.untyped_storage()
            sizes[_key(memory)] = memory.nbytes()
        else:
            sizes[id(tensor)] = tensor.numel() * tensor.element_size()

    plain(state, tensor=count)
    return sum(sizes.values())


def _is_simple(tensor: Tensor) -> bool:
    """Whether shape, strides and memory are all there is to it."""
    plain_class = type(tensor) in (Tensor, torch.nn.Parameter)
    lazily = tensor.is_conj() or tensor.is_neg()
    return plain_class and tensor.layout == torch.strided and not tensor.is_quantized and not lazily


def _key(memory: torch.UntypedStorage) -> tuple[str, int, int]:
    return str(memory.device), memory.data_ptr(), memory.nbytes()

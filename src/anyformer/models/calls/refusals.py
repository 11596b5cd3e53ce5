"""Models that read no token ids: named, with what they read."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.models.calls.names import held, parameters_of
from anyformer.models.calls.probing import tensors_in

_SIDES = (32, 28, 64, 224, 16, 8)  # pixels: CIFAR, MNIST, TinyImageNet, ImageNet, small patches
_IMAGES = ("img", "imgs", "image", "images", "pixel_values", "pixels", "video", "videos", "frames")
_SIZE_NAMES = ("image_size", "img_size", "input_size", "resolution")


def refuse_other_input(module: nn.Module) -> None:
    """CallError where the module has no use for ids but runs on images or on rows of numbers; else nothing."""
    if _embeds_ids(module):
        return
    name = type(module).__name__
    argument = next((p.name for p in parameters_of(module)), "nothing")
    shape = _runs_on_images(module)
    if shape is not None:
        raise CallError(
            f"{name} takes image input ({argument}), not token ids",
            f"ids (B, T) fail; it runs on images {shape}",
            "only models of text are trained here: token ids in, logits out",
        )
    if argument.lower() in _IMAGES:
        raise CallError(
            f"{name} takes image input ({argument}), not token ids",
            f"ids (B, T) fail, and {argument} is the name of images",
            "only models of text are trained here: token ids in, logits out",
        )
    shape = _runs_on_features(module)
    if shape is not None:
        raise CallError(
            f"{name} takes float features ({argument}), not token ids",
            f"ids (B, T) fail; it runs on numbers {shape}: its first layer is a Linear of {shape[-1]} features",
            "only models of text are trained here: put an nn.Embedding before the first layer",
        )


def _runs(module: nn.Module, shape: tuple[int, ...]) -> bool:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            output = module(given)
    except (Exception, SystemExit):  # noqa: BLE001  (any error says that this is not its input)
        return False
    if inspect.iscoroutine(output):
        output.close()
    # a generator, a coroutine, an object of its own, or what was given: nothing shows that the numbers were read
    return any(made is not given for _, made in tensors_in(output))


def _embeds_ids(module: nn.Module) -> bool:
    """Whether ids reach an embedding: what fails after that is no question of what it reads."""
    reached: list[bool] = []

    def look(_: nn.Module, given: tuple[object, ...]) -> None:
        reached.append(bool(given) and isinstance(given[0], Tensor) and not given[0].is_floating_point())

    handles = [m.register_forward_pre_hook(look) for m in module.modules() if isinstance(m, nn.Embedding)]
    try:
        with torch.no_grad():
            output = module(torch.ones(2, 8, dtype=torch.int64))
        if inspect.iscoroutine(output):
            output.close()
    except (Exception, SystemExit):  # noqa: BLE001  (what it raises is told by the search)
        return any(reached)
    finally:
        for handle in handles:
            handle.remove()
    return any(reached)


def _runs_on_images(module: nn.Module) -> tuple[int, ...] | None:
    channels = list(dict.fromkeys(m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)))
    patches = not channels and any(isinstance(m, nn.Unfold | nn.Conv3d) for m in module.modules())
    sides = [int(v) for v in _numbers(module)] + list(_SIDES)
    for c in channels or ([3, 1] if patches or _numbers(module) else []):
        for side in dict.fromkeys(sides):
            if _runs(module, (2, c, side, side)):
                return 2, c, side, side
    return None


def _numbers(module: nn.Module) -> list[int]:
    found = []
    for m in module.modules():
        config = held(m, "config")
        for holder in (vars(m), getattr(config, "__dict__", {})):
            for name in _SIZE_NAMES:
                value = holder.get(name)
                value = value[0] if isinstance(value, tuple | list) and value else value
                found += [value] if isinstance(value, int) and 0 < value < 4096 else []
    return found


def _runs_on_features(module: nn.Module) -> tuple[int, ...] | None:
    widths = list(dict.fromkeys(m.in_features for m in module.modules() if isinstance(m, nn.Linear)))[:3]
    widths += list(dict.fromkeys(m.in_channels for m in module.modules() if isinstance(m, nn.Conv1d)))[:1]
    for width in widths:
        for shape in ((2, 5, width), (5, width), (2, width)):
            if _runs(module, shape):
                return shape
    return None

"""Shifting biases so that rounding to int8 keeps the mean of every channel."""

import copy
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from edgeopt.model import fold_batch_norm
from edgeopt.quantization.variants import calibration_images
from edgeopt.system.int8 import WEIGHT_STEPS

CORRECTION_IMAGES = 128
ACTIVATION_STEPS = 255


def rounded_activations(values: Tensor) -> Tensor:
    """Round a tensor to 8 bits with one range, zero among its steps."""
    low, high = values.min().clamp(max=0), values.max().clamp(min=0)
    step = ((high - low) / ACTIVATION_STEPS).clamp(min=torch.finfo().tiny)
    return torch.round(values / step) * step


def rounded_weights(weights: Tensor, *, steps: int) -> Tensor:
    """Round the weights of a layer [O, ...] with one range a filter: ``steps`` beside zero."""
    widest = weights.abs().flatten(1).amax(1).view(-1, *[1] * (weights.dim() - 1))
    step = (widest / steps).clamp(min=torch.finfo().tiny)
    return torch.round(weights / step) * step


def correct_bias(
    model: nn.Module,
    *,
    calibration: Iterable[tuple[Tensor, Tensor]],
    weight_steps: int = WEIGHT_STEPS,
) -> nn.Module:
    """Return a copy whose biases make up for what int8 does to the mean of every channel.

    Layer by layer, each seeing the corrected ones before it (Nagel et al. 2019,
    doi:10.1109/ICCV.2019.00141, section 4.2, by measured means): in one pass on calibration images
    with rounded weights and activations, every layer's channel means are moved to where they are in
    fp32. BatchNorm is folded first. Weights are rounded to ``weight_steps`` on either side of zero,
    as in the file that is to be corrected.

    Raises
    ------
    ValueError
        When the network cannot be traced, or no layer has a bias.
    """
    images = torch.cat(calibration_images(calibration))[:CORRECTION_IMAGES]
    corrected = fold_batch_norm(model, example=images)
    simulated = copy.deepcopy(corrected)
    exact = _run(corrected, images, lambda name, layer, output: None)[0]
    for layer in _layers(simulated).values():
        layer.weight.data = rounded_weights(layer.weight.data, steps=weight_steps)

    def settle(name: str, layer: nn.Module, output: Tensor) -> Tensor:
        return output + _shaped(exact[name] - _means(layer, output), layer)

    found, calls = _run(simulated, images, settle, rounded=True)
    shifts = {n: exact[n] - found[n] for n, layer in _layers(corrected).items() if calls[n] == 1}
    biased = {n: s for n, s in shifts.items() if corrected.get_submodule(n).bias is not None}
    if not biased:
        raise ValueError(f"{type(model).__name__} has no bias that can be corrected")
    for name, shift in biased.items():
        corrected.get_submodule(name).bias.data.add_(shift)
    return corrected


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Conv2d, nn.Linear)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _run(
    model: nn.Module,
    images: Tensor,
    change: Callable[[str, nn.Module, Tensor], Tensor | None],
    *,
    rounded: bool = False,
) -> tuple[dict[str, Tensor], Counter[str]]:
    """Return the channel means of what each layer writes, unchanged, and how often it is called."""
    means: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def keep(name: str, layer: nn.Module, output: Tensor) -> Tensor | None:
        means[name] = _means(layer, output)
        calls[name] += 1
        return change(name, layer, output)

    hooks = []
    for name, layer in _layers(model).items():
        hooks.append(layer.register_forward_hook(lambda m, _, out, name=name: keep(name, m, out)))
        if rounded:
            hooks.append(
                layer.register_forward_pre_hook(lambda _, given: (rounded_activations(given[0]),))
            )
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return means, calls


def _axis(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1


def _means(layer: nn.Module, output: Tensor) -> Tensor:
    return output.movedim(_axis(layer), 0).flatten(1).mean(1)


def _shaped(values: Tensor, layer: nn.Module) -> Tensor:
    return values if isinstance(layer, nn.Linear) else values.view(-1, 1, 1)

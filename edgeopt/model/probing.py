"""Running a model once to learn about it, with failures that name the module."""

import copy
from contextlib import suppress
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

_PROBE = 512  # pixels: many times any stride
_STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def run_named(model: nn.Module, example_input: Tensor) -> Tensor:
    """Return the logits, or raise ``ValueError`` naming the innermost module that failed."""
    running: list[nn.Module] = []

    def leave(*_: Any) -> None:
        running.pop()

    hooks = [m.register_forward_pre_hook(lambda m, _: running.append(m)) for m in model.modules()]
    hooks += [m.register_forward_hook(leave) for m in model.modules()]
    try:
        with torch.no_grad():
            return model(example_input)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        name = described(model, running[-1])
        shape = tuple(example_input.shape)
        raise ValueError(f"{name} fails on an input of shape {shape}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()


def last_layer(model: nn.Module, example_input: Tensor) -> nn.Module:
    """Find the convolution or linear layer that runs last: the one that makes the logits."""
    ran: list[nn.Module] = []
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(lambda m, *_: ran.append(m)) for layer in layers]
    run_named(model, example_input)
    for hook in hooks:
        hook.remove()
    if not ran:
        raise ValueError(f"{type(model).__name__} has no convolution or linear layer to prune")
    return ran[-1]


def module_without_graph(model: nn.Module, example_input: Tensor) -> str:
    """Describe the innermost module on which the dependency graph cannot be built alone."""
    inputs: dict[nn.Module, Tensor] = {}
    hooks = [
        m.register_forward_pre_hook(lambda m, args: inputs.update({m: args[0]}))
        for m in model.modules()
    ]
    run_named(model, example_input)
    for hook in hooks:
        hook.remove()
    culprit = model
    while broken := [m for m in culprit.children() if m in inputs and _breaks(m, inputs[m])]:
        culprit = broken[0]
    return described(model, culprit)


def _breaks(module: nn.Module, example_input: Tensor) -> bool:
    if not any(True for _ in module.parameters()):
        return False
    try:
        tp.DependencyGraph().build_dependency(module, example_inputs=example_input)
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError):
        return True
    return False


def described(model: nn.Module, module: nn.Module) -> str:
    """Put a module's name and class into words, for messages."""
    name = next(n for n, m in model.named_modules() if m is module)
    return f"module {name!r} ({type(module).__name__})" if name else type(module).__name__


def module_named(model: nn.Module, name: str) -> nn.Module:
    """Get a module by name, or raise ``ValueError`` with the names that there are."""
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        allowed = ", ".join(n for n, _ in model.named_children())
        raise ValueError(f"unknown module {name!r}; allowed: {allowed}, or below") from error


def require_pixels(model: nn.Module, shape: tuple[int, int, int], *, name: str) -> None:
    """Raise ``ValueError`` when images [C, H, W] are smaller than the network's stride."""
    stride, side = _total_stride(model, channels=shape[0]), min(shape[1:])
    if side < stride:
        raise ValueError(
            f"images of {side} pixels are smaller than the stride of {name}, {stride}; "
            f"allowed: image_size {stride} or more"
        )


def _total_stride(model: nn.Module, *, channels: int) -> int:
    """Pixels of the image's side that one step in the smallest strided map stands for."""
    sides = [_PROBE]
    probe = copy.deepcopy(model).to("meta").eval()
    for module in probe.modules():
        if isinstance(module, _STRIDED) and module.stride not in (1, (1, 1)):
            module.register_forward_hook(lambda _, __, out: sides.append(min(out.shape[-2:])))
    with suppress(Exception):  # a head for one image size fails, after all strided maps were made
        probe(torch.empty(1, channels, _PROBE, _PROBE, device="meta"))
    return _PROBE // min(sides)

"""Running a model once to learn about it, with failures that name the module."""

import copy
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules import module as hooks

# What the dependency graph raises on structure that it does not know.
GRAPH_ERRORS = (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError)


def run_named(model: nn.Module, example_input: Tensor) -> tuple[Tensor, dict[nn.Module, tuple]]:
    """Return the logits, and what each module was given, in the order of their last calls.

    Raises ``ValueError`` naming the innermost module that failed.
    """
    running: list[nn.Module] = []
    given: dict[nn.Module, tuple] = {}

    def enter(module: nn.Module, inputs: tuple) -> None:
        running.append(module)
        given.pop(module, None)
        given[module] = inputs

    def leave(*_: Any) -> None:
        running.pop()

    entered, left = hooks.register_module_forward_pre_hook, hooks.register_module_forward_hook
    try:
        with entered(enter), left(leave), torch.no_grad():
            return model(example_input), given
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        name, shape = _described(model, running[-1]), tuple(example_input.shape)
        raise ValueError(f"{name} fails on an input of shape {shape}: {error}") from error


def runs(model: nn.Module, example_input: Tensor) -> bool:
    """Tell whether a network takes images of this shape."""
    try:
        run_named(model, example_input)
    except ValueError:
        return False
    return True


def trains(model: nn.Module, example_input: Tensor) -> bool:
    """Tell whether a network takes two such images in training; its state stays as it was."""
    copied = copy.deepcopy(model).train()
    with torch.random.fork_rng(devices=[]):  # dropout draws
        return runs(copied, example_input[:1].repeat(2, *[1] * (example_input.dim() - 1)))


def last_layer(model: nn.Module, example_input: Tensor) -> nn.Module:
    """Find the convolution or linear layer that runs last: the one that makes the logits."""
    _, given = run_named(model, example_input)
    layers = [module for module in given if isinstance(module, nn.Conv2d | nn.Linear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no convolution or linear layer to prune")
    return layers[-1]


def module_without_graph(model: nn.Module, example_input: Tensor) -> str:
    """Describe the innermost module on which the dependency graph cannot be built alone."""
    _, given = run_named(model, example_input)
    culprit = model
    while broken := [m for m in culprit.children() if given.get(m) and _breaks(m, given[m][0])]:
        culprit = broken[0]
    return _described(model, culprit)


def _breaks(module: nn.Module, example_input: Tensor) -> bool:
    if not list(module.parameters()):
        return False
    try:
        tp.DependencyGraph().build_dependency(module, example_inputs=example_input)
    except GRAPH_ERRORS:
        return True
    return False


def _described(model: nn.Module, module: nn.Module) -> str:
    name = next((n for n, m in model.named_modules() if m is module), "")
    return f"module {name!r} ({type(module).__name__})" if name else type(module).__name__

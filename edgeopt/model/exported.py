"""Networks whose code asks for sizes, traced by torch.export."""

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edgeopt.model.same_function import require_same_function
from edgeopt.system import known_noise_silenced


def exported(model: nn.Module, *, example: Tensor) -> fx.GraphModule:
    """Trace a network in eval mode with torch.export, for any number of images of one size.

    Its graph calls no modules, and functions by their names in Python where they have one.
    Source: https://docs.pytorch.org/docs/stable/export.html

    Parameters
    ----------
    example : Tensor
        Images [N, C, H, W] of the size that the network will serve.

    Raises
    ------
    ValueError
        When torch.export cannot trace the network either, or computes something else.
    """
    name = type(model).__name__
    try:
        traced = fx.GraphModule(*_python_graph(model, example[:1]), class_name=name)
        for count in (1, 3):
            images = example.repeat(count, 1, 1, 1)[:count]
            require_same_function(traced, model, images=images)
    except Exception as error:  # it runs a user's code on stand-ins
        reason = str(error).partition("\n")[0]
        raise ValueError(f"torch.fx and torch.export cannot trace {name}: {reason}") from error
    return traced


def _python_graph(model: nn.Module, image: Tensor) -> tuple[nn.Module, fx.Graph]:
    sizes = ({0: torch.export.Dim.AUTO},)
    with known_noise_silenced():
        pair = image.repeat(2, 1, 1, 1)
        traced = torch.export.export(model, (pair,), dynamic_shapes=sizes).module(
            check_guards=False
        )
    for node in [*traced.graph.nodes]:
        _call_python(node)
    graph = fx.Graph()  # one tensor in, one out, and nothing of the tracer, so that it pickles
    graph.output(graph.graph_copy(traced.graph, {}))
    return traced, graph


def _call_python(node: fx.Node) -> None:
    """Let a node of the exported graph call what its ATen operator is called in Python."""
    if node.op == "output":
        (node.args,) = node.args
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    name = node.target._schema.name.partition("::")[2]
    if name.startswith("dropout"):  # nothing is dropped in eval mode
        node.replace_all_uses_with(node.args[0])
        node.graph.erase_node(node)
        return
    name = {"sym_size": "size"}.get(name, name)
    if name.endswith("_"):
        if len(node.args[0].users) > 1:  # others see it change
            return
        name = name.rstrip("_")
    if function := getattr(torch, name, None) or getattr(functional, name, None):
        node.target = function
    elif hasattr(Tensor, name):
        node.op, node.target = "call_method", name

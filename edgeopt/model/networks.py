"""Classifiers by name: SmallCNN, any torchvision classifier, or the user's own factory."""

import copy
import hashlib
import importlib
import inspect
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.model.weights import load_weights, weights_path
from edgeopt.schema import require_at_least
from edgeopt.system import source_digest

_PROBE = 512  # pixels: many times any stride
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
_STRIDED = (nn.Conv2d, *_POOLS)


class SmallCNN(nn.Module):
    """Two 3x3 convolutions and one linear layer for 28x28 grey images.

    Parameters
    ----------
    conv1_channels, conv2_channels : int
        Output channels of the two convolutions, at least 1 each.
    num_classes : int
        Width of the ``classifier`` layer.
    """

    def __init__(
        self, conv1_channels: int = 16, conv2_channels: int = 32, num_classes: int = 10
    ) -> None:
        super().__init__()
        require_at_least(1, conv1_channels=conv1_channels, conv2_channels=conv2_channels)
        require_at_least(1, num_classes=num_classes)
        self.conv1 = nn.Conv2d(1, conv1_channels, kernel_size=3, padding=1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(conv1_channels, conv2_channels, kernel_size=3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.classifier = nn.Linear(conv2_channels * 7 * 7, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, 1, 28, 28]."""
        hidden = self.pool1(self.relu1(self.conv1(images)))  # [B, C1, 14, 14]
        hidden = self.pool2(self.relu2(self.conv2(hidden)))  # [B, C2, 7, 7]
        return self.classifier(torch.flatten(hidden, 1))


def build_model(
    name: str,
    *,
    num_classes: int = 10,
    conv1_channels: int = 16,
    conv2_channels: int = 32,
    weights: str | Path | None = None,
) -> nn.Module:
    """Build a classifier by name.

    Parameters
    ----------
    name : str
        ``small_cnn``, a torchvision classifier such as ``mobilenet_v3_small``, or
        ``package.module:factory``, called with ``num_classes``.
    weights : str or Path, optional
        A file, see :func:`edgeopt.model.load_weights`; a folder that holds ``<name>.pt``; or
        ``torchvision`` for its own pretrained weights, whose final layer is replaced when
        ``num_classes`` differs. Random weights when omitted.

    Raises
    ------
    ValueError
        When the name is unknown, the factory fails or returns no ``nn.Module``, the weights do not
        fit, or torchvision has no weights of this network.
    OSError
        When the weights are not there, or torchvision's cannot be downloaded.
    """
    if weights == "torchvision" and (name == "small_cnn" or ":" in name):
        raise ValueError(f"torchvision has no weights of {name!r}; allowed: a local state dict")
    if name == "small_cnn":
        model = SmallCNN(conv1_channels, conv2_channels, num_classes)
    elif ":" in name:
        model = _from_factory(name, num_classes=num_classes)
    else:
        model = _from_torchvision(name, num_classes=num_classes, weights=weights)
    if weights not in (None, "torchvision"):
        load_weights(model, weights_path(weights, name=name))
    return model


def check_network(
    model: nn.Module, *, name: str, input_shape: tuple[int, ...], num_classes: int
) -> None:
    """Raise ``ValueError`` unless ``model`` gives one logit a class for black images.

    ``name`` is the network's in messages, ``input_shape`` [B, C, H, W] as the run serves it. Images
    must not be smaller than the network's stride.
    """
    batch, channels, *sides = input_shape
    stride = _total_stride(copy.deepcopy(model), input_shape=input_shape)
    if min(sides) < stride:
        raise ValueError(
            f"images of {min(sides)} pixels are smaller than the stride of {name}, {stride}; "
            f"allowed: image_size {stride} or more"
        )
    served = copy.deepcopy(model).eval()
    try:
        with torch.no_grad():
            logits = served(torch.zeros(input_shape))
    except (Exception, SystemExit) as error:  # a user's network raises whatever it likes
        own = input_channels(model)
        hint = "" if own in (None, channels) else f" (its first convolution takes channels: {own})"
        raise ValueError(
            f"model {name!r} fails on images [B, C, H, W] of {list(input_shape)}{hint}: "
            f"{type(error).__name__}: {error}"
        ) from error
    given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if given != [batch, num_classes]:
        raise ValueError(
            f"model {name!r} gives {given} for {batch} images of {num_classes} classes; "
            f"allowed: logits {[batch, num_classes]}, a tensor"
        )


def _total_stride(model: nn.Module, *, input_shape: tuple[int, ...]) -> int:
    """Pixels of the image's side that one step in the smallest strided map stands for.

    A pooling over the whole map, as these images have it, is no step.
    """
    _, channels, *_ = input_shape
    whole = {
        module
        for module, before, after in _strided_sides(model, input_shape)
        if isinstance(module, _POOLS)
        and after == 1
        and module.kernel_size in (before, (before, before))
    }
    probed = _strided_sides(model, (1, channels, _PROBE, _PROBE))
    return _PROBE // min([_PROBE, *(after for module, _, after in probed if module not in whole)])


def _strided_sides(
    model: nn.Module, input_shape: tuple[int, ...]
) -> list[tuple[nn.Module, int, int]]:
    """List the strided modules that black images pass, and their maps' sides before and after."""
    found = []

    def note(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        found.append((module, min(given[0].shape[-2:]), min(out.shape[-2:])))

    strided = [
        m for m in model.modules() if isinstance(m, _STRIDED) and m.stride not in (1, (1, 1))
    ]
    hooks = [module.register_forward_hook(note) for module in strided]
    # A head for one image size fails, after all strided maps were made.
    with suppress(Exception, SystemExit), torch.no_grad():
        model.eval()(torch.zeros(input_shape))
    for hook in hooks:
        hook.remove()
    return found


def input_channels(model: nn.Module) -> int | None:
    """Channels that the first convolution takes; None where a network has none."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return first and first.in_channels


def _from_factory(name: str, *, num_classes: int) -> nn.Module:
    import edgeopt.system.torchvision  # noqa: F401 - which may not load by itself in that module

    module_name, _, factory_name = name.partition(":")
    problem = "cannot be imported"
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
        problem = f"fails with num_classes={num_classes}"
        model = factory(num_classes=num_classes)
    except (Exception, SystemExit) as error:  # a user's code raises whatever it likes
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"model {name!r} {problem}: {reason}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r} returned {type(model).__name__}; allowed: nn.Module")
    return model


def _from_torchvision(name: str, *, num_classes: int, weights: str | Path | None) -> nn.Module:
    from edgeopt.system.torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(
            f"unknown model {name!r}; allowed: small_cnn, package.module:factory, "
            f"or one of torchvision's {', '.join(known)}"
        )
    if weights != "torchvision":
        return models.get_model(name, num_classes=num_classes)
    try:
        pretrained = models.get_model(name, weights="DEFAULT")
    except URLError as error:
        raise OSError(
            f"torchvision's weights of {name} cannot be downloaded ({error.reason}); allowed: "
            "the path of a local state dict, or none"
        ) from error
    return _with_new_head(pretrained, num_classes=num_classes)


def _with_new_head(model: nn.Module, *, num_classes: int) -> nn.Module:
    """Replace the last layer, linear or (SqueezeNet's) a convolution, if it has other classes."""
    kinds = (nn.Linear, nn.Conv2d)
    name, head = [(n, m) for n, m in model.named_modules() if isinstance(m, kinds)][-1]
    if isinstance(head, nn.Linear):
        fresh = nn.Linear(head.in_features, num_classes)
    else:
        fresh = nn.Conv2d(head.in_channels, num_classes, head.kernel_size)
    if fresh.weight.shape != head.weight.shape:
        model.set_submodule(name, fresh)
    return model


def set_deterministic(seed: int) -> None:
    """Seed Python, NumPy and torch, so that the same seed trains the same weights."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002, libraries draw from the legacy generator
    torch.manual_seed(seed)


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Hold torch to deterministic kernels inside the block only.

    The switch is global and makes FX int8 conversion raise, so it is undone on the way out.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def network_digest(model: nn.Module) -> str:
    """SHA-256 over a network's architecture, its source where it is a user's, and its weights."""
    seen = hashlib.sha256((repr(model) + _own_source(model)).encode())
    for name, tensor in model.state_dict().items():
        seen.update(name.encode())
        seen.update(tensor.contiguous().numpy())
    return seen.hexdigest()


def _own_source(model: nn.Module) -> str:
    """Source of the modules of a network, of whose ``forward`` its ``repr`` says nothing.

    Of a user's own that is the digest of all that they import of the user's own.
    """
    names = {type(module).__module__ for module in model.modules()}
    own = sorted(n for n in names if n.partition(".")[0] not in (torch.__name__, "torchvision"))
    ours = __name__.partition(".")[0] + "."
    return "".join(
        inspect.getsource(sys.modules[name]) if name.startswith(ours) else source_digest(name)
        for name in own
    )


def factory_digest(name: str) -> str:
    """SHA-256 of the module that a user's network is made in; empty for other networks."""
    return source_digest(name.partition(":")[0]) if ":" in name else ""

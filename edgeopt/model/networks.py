"""Classifiers by name: SmallCNN, any torchvision classifier, or the user's own factory."""

import hashlib
import importlib
import inspect
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.model.weights import fit_weights, load_weights, read_weights, weights_path

LIBRARIES = (torch.__name__, "torchvision")


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
        sizes = {"conv1_channels": conv1_channels, "conv2_channels": conv2_channels}
        for name, value in {**sizes, "num_classes": num_classes}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")
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
        A file, see :func:`edgeopt.model.read_weights`; a folder that holds ``<name>.pt``; or
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

    Parameters
    ----------
    name : str
        The network's name in messages.
    input_shape : tuple of int
        [B, C, H, W] as the run serves it.
    """
    was_training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(input_shape))
    except (Exception, SystemExit) as error:  # a user's network raises whatever it likes
        raise ValueError(
            f"model {name!r} fails on images [B, C, H, W] of {list(input_shape)}"
            f"{_other_channels(model, input_shape[1])}: {type(error).__name__}: {error}"
        ) from error
    finally:
        model.train(was_training)
    if not isinstance(logits, Tensor):
        raise ValueError(f"model {name!r} gives {type(logits).__name__}; allowed: logits, a tensor")
    if logits.shape != (input_shape[0], num_classes):
        raise ValueError(
            f"model {name!r} gives {list(logits.shape)} for {input_shape[0]} images of "
            f"{num_classes} classes; allowed: logits {[input_shape[0], num_classes]}"
        )


def input_channels(model: nn.Module) -> int | None:
    """Channels that the first convolution takes; None where a network has none."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return first and first.in_channels


def load_small_cnn(path: str | Path) -> SmallCNN:
    """Build the SmallCNN, pruned or not, whose weights are in a file, in eval mode."""
    state = read_weights(path)
    try:
        sizes = [len(state[f"{layer}.bias"]) for layer in ("conv1", "conv2", "classifier")]
    except KeyError as error:
        raise ValueError(f"the weights in {path} are no SmallCNN's: {error} is missing") from error
    return fit_weights(SmallCNN(*sizes), state, source=str(path)).eval()


def _other_channels(model: nn.Module, given: int) -> str:
    own = input_channels(model)
    return f" (its first convolution takes channels: {own})" if own not in (None, given) else ""


def _from_factory(name: str, *, num_classes: int) -> nn.Module:
    module_name, _, factory_name = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (Exception, SystemExit) as error:  # a user's module raises whatever it likes
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"model {name!r} cannot be imported: {reason}") from error
    try:
        model = factory(num_classes=num_classes)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"model {name!r} fails with num_classes={num_classes}: {reason}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r} returned {type(model).__name__}; allowed: nn.Module")
    return model


def _from_torchvision(name: str, *, num_classes: int, weights: str | Path | None) -> nn.Module:
    from edgeopt.system import models

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
        classes, fresh = head.out_features, nn.Linear(head.in_features, num_classes)
    else:
        classes = head.out_channels
        fresh = nn.Conv2d(head.in_channels, num_classes, head.kernel_size)
    if classes != num_classes:
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], fresh)
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
    """Source of the modules of a user's network, of whose ``forward`` its ``repr`` says nothing."""
    names = {type(module).__module__ for module in model.modules()}
    own = sorted(n for n in names if n.partition(".")[0] not in LIBRARIES)
    return "".join(inspect.getsource(sys.modules[name]) for name in own)

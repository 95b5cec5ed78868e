"""Trained models and data that the tests of int8 collapse share."""

import functools

import torch
from torch import nn

from edgeopt.data.splits import Split
from edgeopt.model.networks import SmallCNN, set_deterministic
from edgeopt.system.torchvision import models
from tests.conftest import striped_split

CLASSES = 4


@functools.cache
def splits() -> tuple[Split, Split]:
    """Calibration and validation images of the striped task."""
    return striped_split(128, seed=2), striped_split(400, seed=3)


def fitted(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, steps: int
) -> nn.Module:
    """Fit a model in place on random batches of 32, quickly and repeatably."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them only wait for each other on layers this small
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return model.eval()


@functools.cache
def trained_cnn() -> SmallCNN:
    """SmallCNN that knows the striped task."""
    set_deterministic(0)
    train = striped_split(512, seed=1)
    return fitted(SmallCNN(8, 12, CLASSES), train.take(len(train)), train.labels, steps=150)


def in_colour(images: torch.Tensor) -> torch.Tensor:
    """Grey images [N, 1, 28, 28] as [N, 3, 32, 32]."""
    return nn.functional.pad(images, (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous()


@functools.cache
def trained_mobilenet() -> nn.Module:
    """MobileNetV3-Small of half the width that knows the striped task at 32x32."""
    set_deterministic(0)
    model = models.mobilenet_v3_small(num_classes=CLASSES, width_mult=0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # torchvision's 0.01 needs hundreds of steps to settle
    train = striped_split(512, seed=1)
    return fitted(model, in_colour(train.take(len(train))), train.labels, steps=120)

"""Networks that tests of rewriting share, and what is asked of a rewritten one."""

import math

import torch
from torch import nn
from torch.nn import functional

from edgeopt.model.networks import build_model
from edgeopt.system.torchvision import models


def lived_in(name: str) -> nn.Module:
    """Build a torchvision network whose BatchNorms hold statistics, as after training."""
    torch.manual_seed(0)
    model = build_model(name).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


def assert_same_function(changed: nn.Module, model: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        expected, found = model(images), changed(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


class Block(nn.Module):
    """An addition, a concatenation, a grouped layer, and a functional Hardswish."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1)
        self.after = nn.Conv2d(10, 8, 3, groups=2)
        self.late, self.head = nn.Conv2d(8, 7, 1), nn.Linear(7, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.stem(images))
        hidden = torch.relu(hidden + self.second(torch.relu(self.first(hidden))))
        hidden = torch.cat([torch.relu(self.left(hidden)), torch.relu(self.right(hidden))], 1)
        hidden = functional.hardswish(self.late(torch.relu(self.after(hidden))))
        return self.head(functional.adaptive_avg_pool2d(hidden, 1).view(hidden.size(0), -1))


def small_convnext() -> nn.Module:
    """ConvNeXt of two stages: LayerNorms over the last axis and over the second, and GELU."""
    torch.manual_seed(0)
    stages = [models.convnext.CNBlockConfig(8, 12, 1), models.convnext.CNBlockConfig(12, None, 1)]
    return models.ConvNeXt(stages, layer_scale=1.0, num_classes=5).eval()


class Loose(nn.Module):
    """Grey images to classes, with a parameter outside any layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 16, 3), nn.Linear(16, num_classes)
        self.scale = nn.Parameter(torch.ones(16, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head((self.conv(images) * self.scale).mean((2, 3)))


class OwnConv(nn.Conv2d):
    """A convolution by another name."""


class OwnNorm(nn.BatchNorm2d):
    """BatchNorm and ReLU in one module, whose code calls them as functions."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        torch._assert(hidden.ndim == 4, "not an image")
        hidden = functional.batch_norm(
            *(hidden, self.running_mean, self.running_var, self.weight, self.bias),
            training=self.training,
            eps=self.eps,
        )
        return functional.relu(hidden)


class StandardizedConv(nn.Conv2d):
    """A convolution whose filters have mean 0 and deviation 1 (arXiv:1903.10520)."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / self.weight.std((1, 2, 3), keepdim=True)
        return functional.conv2d(hidden, weight, self.bias, self.stride, self.padding)


class OwnLayers(nn.Module):
    """Colour images to five classes, by layers that are classes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = OwnConv(3, 8, 3, stride=2, bias=False), OwnNorm(8)
        self.middle = StandardizedConv(8, 12, 3, padding=1)
        self.last, self.group_norm = nn.Conv2d(12, 16, 3), nn.GroupNorm(4, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.stem(images))
        hidden = functional.relu(self.middle(hidden))
        hidden = functional.relu(self.group_norm(self.last(hidden)))
        return functional.linear(hidden.mean((2, 3)), self.head.weight, self.head.bias)


class SamePadded(nn.Module):
    """Colour images to five classes, padded as TensorFlow does: torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.last, self.act = nn.Conv2d(8, 12, 3, stride=2), nn.Hardswish(inplace=True)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(12, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.norm(self._padded(self.stem, images)))
        hidden = self.drop(self.act(self._padded(self.last, hidden)).mean((2, 3)))
        return self.head(hidden.view(hidden.shape[0], -1))

    def _padded(self, layer: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        size = images.shape[-1]
        missing = max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0)
        if missing > 0:
            images = functional.pad(images, [missing // 2, missing - missing // 2] * 2)
        return layer(images)

"""A user's networks, as ``tests.own_network:colour`` and ``:grey``, and pictures for them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

COLOUR, GREY = "tests.own_network:colour", "tests.own_network:grey"
CLASSES = ("bolt", "nut", "washer")
SIDE = 24


class Block(nn.Module):
    """Two convolutions beside a projection."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.short = nn.Conv2d(channels, out, 1, stride)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.norm1(self.conv1(images)))
        return torch.relu(self.norm2(self.conv2(hidden)) + self.short(images))


def colour(num_classes: int) -> nn.Module:
    return _residual(3, num_classes)


def grey(num_classes: int) -> nn.Module:
    return _residual(1, num_classes)


def one_too_many(num_classes: int) -> nn.Module:
    return _residual(3, num_classes + 1)


def failing(num_classes: int) -> nn.Module:
    raise RuntimeError("no licence")


def not_a_network(num_classes: int) -> int:
    return num_classes


def _residual(channels: int, num_classes: int) -> nn.Module:
    blocks = Block(channels, 8, 2), Block(8, 16, 2), Block(16, 16, 1)
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))


def picture(rng: np.random.Generator, label: int) -> np.ndarray:
    """Noise with a bright band across, down, or a frame."""
    image = rng.uniform(0, 120, (SIDE, SIDE, 3))
    place = int(rng.integers(4, SIDE - 8))
    bands = [np.s_[place : place + 4], np.s_[:, place : place + 4], np.s_[place:, place:]]
    image[bands[label]] += 110
    return image.astype(np.uint8)


def write_pictures(root: Path, counts: dict[str, int], *, seed: int = 0) -> Path:
    """Write ``<root>/<role>/<class>/<number>.png``, so many of each class."""
    rng = np.random.default_rng(seed)
    for role, count in counts.items():
        for label, name in enumerate(CLASSES):
            folder = root / role / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.fromarray(picture(rng, label)).save(folder / f"{number:03d}.png")
    return root


def trained_elsewhere(root: Path, path: Path) -> Path:
    """Train the colour network on a folder with plain torch and ImageNet's mean and std."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    files = [(f, CLASSES.index(f.parent.name)) for f in sorted((root / "train").rglob("*.png"))]
    arrays = [(np.asarray(Image.open(file)) / 255 - mean) / std for file, _ in files]
    images = torch.from_numpy(np.stack(arrays)).float().permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([label for _, label in files])
    torch.manual_seed(0)
    model = colour(len(CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(15):
        for index in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
    torch.save({"epoch": 15, "state_dict": model.state_dict()}, path)
    return path

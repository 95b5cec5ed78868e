"""The same study the usual way: PIL images through per-image transforms in worker processes, a deep
copy per candidate, each measured after the other. It is what edgeopt's speed is compared with."""

import copy
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from edgeopt.data import Split
from edgeopt.model import SmallCNN, set_deterministic
from edgeopt.pruning import structured_channel_prune
from edgeopt.quantization import precision_variant
from edgeopt.system.torchvision import transforms


class PilImages(Dataset):
    """Images kept as PIL images and transformed one by one."""

    def __init__(self, split: Split) -> None:
        pixels = (split.take(len(split))[:, 0].numpy() * 255).round().astype(np.uint8)
        self.images = [Image.fromarray(image) for image in pixels]
        self.labels = split.labels.tolist()
        self.transform = transforms.Compose(
            [transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def usual_study(
    train: Split,
    validation: Split,
    *,
    epochs: int,
    levels: list[float],
    precisions: list[str],
    repeats: int,
    timing: Callable[..., float],
    seed: int = 0,
) -> pd.DataFrame:
    """Train, prune, quantize, measure: pruning_level, precision, accuracy, latency_ms.

    ``timing`` is what a repeat is: :func:`time_single_images` or :func:`time_passes`.
    """
    set_deterministic(seed)
    options = {"batch_size": 64, "num_workers": 2}
    train_loader = DataLoader(PilImages(train), shuffle=True, **options)
    val_loader = DataLoader(PilImages(validation), **options)
    model = train_usual(SmallCNN(), train_loader, epochs=epochs)
    rows = []
    for level in levels:
        for precision in precisions:
            candidate = structured_channel_prune(copy.deepcopy(model), level)
            variant, dtype = precision_variant(candidate, precision, train_loader, 10)
            accuracy = evaluate_usual(variant, val_loader, half=dtype == "fp16")
            latency = timing(variant, val_loader, half=dtype == "fp16", repeats=repeats)
            rows.append((level, precision, accuracy, latency))
    return pd.DataFrame(rows, columns=["pruning_level", "precision", "accuracy", "latency_ms"])


def train_usual(model: nn.Module, loader: DataLoader, *, epochs: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def evaluate_usual(model: nn.Module, loader: DataLoader, *, half: bool) -> float:
    hits = total = 0
    for images, labels in loader:
        logits = model(images.half() if half else images)
        hits += (logits.argmax(1) == labels).sum().item()
        total += len(labels)
    return hits / total


@torch.no_grad()
def time_single_images(model: nn.Module, loader: DataLoader, *, half: bool, repeats: int) -> float:
    """Mean milliseconds of a call on one image, over as many calls as edgeopt times."""
    image = torch.rand(1, 1, 28, 28).to(torch.float16 if half else torch.float32)
    times = []
    for _ in range(repeats * 30):
        start = time.perf_counter()
        model(image)
        times.append(time.perf_counter() - start)
    return float(np.mean(times)) * 1e3


@torch.no_grad()
def time_passes(model: nn.Module, loader: DataLoader, *, half: bool, repeats: int) -> float:
    """Mean milliseconds an image over ``repeats`` passes of the loader.

    Only the calls are timed, as PyTorch's tutorial on static quantization has it:
    https://docs.pytorch.org/tutorials/advanced/static_quantization_tutorial.html
    """
    seconds = seen = 0
    for _ in range(repeats):
        for images, _ in loader:
            start = time.perf_counter()
            model(images.half() if half else images)
            seconds += time.perf_counter() - start
            seen += len(images)
    return seconds / seen * 1e3

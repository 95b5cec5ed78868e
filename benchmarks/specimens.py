"""Int8 collapses of every kind, planted and recovered: how often, at what share, how fast."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from edgeopt.data import Preprocessing, Splits, load_splits
from edgeopt.experiments import recover_int8
from edgeopt.experiments.recovery.remedies import Rewrites
from edgeopt.model import FIXED, build_model, channel_groups, fit, fold_batch_norm
from edgeopt.quantization import barrier_groups, quantization_aware_train
from edgeopt.quantization.planting import plant_collapse
from edgeopt.runtimes import RUNTIMES

NETWORKS = (
    "small_cnn",
    "mobilenet_v3_small",
    "resnet18",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
)
KINDS = ("chain", "depthwise", "residual", "activation", "concat", "head", "small", "offset", "all")
ALLOWED_DROP, SHARE_GOAL, SECONDS_GOAL = 0.01, 0.95, 20
OFFSET = 200.0
LEARNING_RATE = 1e-3


def specimens() -> Iterator[str]:
    """MobileNetV3-Small at 64x64 on ONNX Runtime: the goal of 20 s for each specimen."""
    yield from recovered("mobilenet_v3_small", runtimes=("onnxruntime",))


def recovered(name: str, *, runtimes: Sequence[str] = RUNTIMES) -> Iterator[str]:
    """Recover every kind of collapse of a network; a line each, as soon as it is known."""
    splits, rows = _splits(name), []
    for row in _rows(_trained(name, splits), splits, runtimes):
        rows.append(row)
        yield (
            "{kind} ({layer}) on {runtime}: fp32 {fp32:.3f}, int8 {fell:.3f}, recovered "
            "{accuracy:.3f} by {remedy}, {share:.0%} of the MACs in integers, {seconds:.1f} s"
        ).format(**row)
    table = pd.DataFrame(rows)
    held = table["reached"] & (table["share"] >= SHARE_GOAL)
    slowest = f"slowest {table['seconds'].max():.0f} s (goal: {SECONDS_GOAL})"
    yield (
        f"{name}: {held.sum()} of {len(table)} within {ALLOWED_DROP:.0%} of fp32, {SHARE_GOAL:.0%} "
        f"of the MACs in integers or more; {slowest}"
    )


def _splits(name: str) -> Splits:
    shape = {} if name == "small_cnn" else {"image_size": 64, "channels": 3}
    counts = {"train_subset": 6000, "val_subset": 1000, "test_subset": 500}
    return load_splits(
        "fashion-mnist-20k", calibration_images=320, preprocessing=Preprocessing(**shape), **counts
    )


def _trained(name: str, splits: Splits) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # torchvision's 0.01 needs thousands of steps to settle
    loader = splits.train.loader(64, shuffle=True)
    epochs = 3 if name == "small_cnn" else 2
    return fit(
        model, loader, epochs=epochs, learning_rate=LEARNING_RATE, progress=False
    ).model.eval()


def _rows(model: nn.Module, splits: Splits, runtimes: Sequence[str]) -> Iterator[dict]:
    calibration = tuple(splits.calibration.loader(64))
    train = partial(
        quantization_aware_train,
        train_loader=splits.train.loader(64, shuffle=True),
        epochs=1,
        learning_rate=LEARNING_RATE / 30,
        progress=False,
    )
    for kind, (layer, planted) in _planted(model, splits.validation.take(1)).items():
        rewrites = Rewrites(planted, calibration=calibration, train_quantized=train)
        for runtime in runtimes:
            with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
                start = time.perf_counter()
                found = recover_int8(
                    planted,
                    calibration=calibration,
                    validation=splits.validation,
                    max_drop=ALLOWED_DROP,
                    folder=Path(scratch),
                    runtime=runtime,
                    rewrites=rewrites,
                    rounds=2,
                )
                seconds = time.perf_counter() - start
                rewrites.artifacts.clear()
            first, plain = found.attempts.iloc[0], found.attempts.iloc[1]
            yield {
                "kind": kind,
                "layer": layer,
                "runtime": runtime,
                "fp32": first["accuracy"],
                "fell": plain["accuracy"],
                "accuracy": found.selected.accuracy,
                "remedy": found.selected.remedy.name,
                "share": found.selected.int8_mac_share,
                "reached": found.reached,
                "seconds": seconds,
            }


def _planted(model: nn.Module, example: torch.Tensor) -> dict[str, tuple[str, nn.Module]]:
    """One network for each kind that the network has, drawn by a seed."""
    places = _places(model, example)
    generator = torch.Generator().manual_seed(7)
    found: dict[str, tuple[str, nn.Module]] = {}
    everything = model
    for kind in KINDS[:-1]:
        if not places.get(kind):
            continue
        layer, channels = places[kind][
            int(torch.randint(len(places[kind]), (), generator=generator))
        ]
        chosen = channels[torch.randperm(len(channels), generator=generator)[:2]].tolist()
        factor = 10 ** float(2 + 2 * torch.rand((), generator=generator))

        def plant(network: nn.Module, kind=kind, layer=layer, chosen=chosen, factor=factor):
            if kind == "offset":
                return _with_offset(network, layer, chosen[0], example=example)
            size = 1e-3 if kind == "small" else factor
            channels = chosen if kind == "depthwise" else chosen[:1]
            return plant_collapse(network, layer, channels, size, example=example)

        found[kind] = (layer, plant(model))
        everything = plant(everything)
    found["all"] = ("all of them", everything)
    return found


def _with_offset(model: nn.Module, layer: str, channel: int, *, example: torch.Tensor) -> nn.Module:
    """Add a constant to a channel, and take it back from the biases of the layers that read it.

    Through ReLU that makes another network, which computes what its own fp32 computes.
    """
    changed = fold_batch_norm(model, example=example)
    groups = channel_groups(changed, example=example)
    group = groups.layers[layer].outputs[channel]
    with torch.no_grad():
        changed.get_submodule(layer).bias[channel] += OFFSET
        for name, ports in groups.layers.items():
            reader, read = changed.get_submodule(name), ports.inputs == group
            if not read.any():
                continue
            if isinstance(reader, nn.BatchNorm2d):
                reader.running_mean[read] += OFFSET
                continue
            if reader.bias is None:
                reader.bias = nn.Parameter(torch.zeros(len(reader.weight)))
            taps = reader.weight.flatten(2).sum(2) if reader.weight.dim() == 4 else reader.weight
            depthwise = taps.shape[1] == 1 < len(read)
            reader.bias -= OFFSET * (taps[:, 0] * read if depthwise else taps[:, read].sum(1))
    return changed


def _places(model: nn.Module, example: torch.Tensor) -> dict[str, list[tuple[str, torch.Tensor]]]:
    """Layers and channels of each kind, by the structure of their channel groups."""
    folded = fold_batch_norm(model, example=example)
    groups = channel_groups(folded, example=example)
    held = barrier_groups(groups)
    writers = torch.zeros(groups.count)
    readers = [ports.inputs.unique() for ports in groups.layers.values()]
    for ports in groups.layers.values():
        writers[ports.outputs.unique()] += 1
    last = [*groups.layers][-1]
    places: dict[str, list[tuple[str, torch.Tensor]]] = {}
    for name, ports in groups.layers.items():
        layer, own = folded.get_submodule(name), ports.outputs
        free = (own != FIXED) & ~held[own]
        partial = any(0 < torch.isin(read, own).float().mean() < 1 for read in readers)
        marks = {
            "chain": free & (writers[own] == 1),
            "depthwise": free & (getattr(layer, "groups", 1) > 1),
            "residual": free & (writers[own] > 1),
            "activation": held[own] & (own.numel() > 1),
            "concat": free & partial,
            "head": torch.isin(own, groups.layers[last].inputs) & (own != FIXED),
            "small": free & (writers[own] == 1),
            "offset": free & (writers[own] == 1) & (layer.bias is not None),
        }
        for kind, mark in marks.items():
            if mark.sum() > 1:
                places.setdefault(kind, []).append((name, mark.nonzero().flatten()))
    return places

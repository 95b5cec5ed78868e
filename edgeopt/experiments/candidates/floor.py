"""The call's floor: what a runtime takes for a network that computes next to nothing."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import nn

from edgeopt.data import Split
from edgeopt.experiments.candidates.candidate import Candidate, CandidateSpec
from edgeopt.experiments.candidates.preparing import prepare_candidates

FLOOR = "call-floor"


def floor_model(split: Split) -> str:
    """Name of the smallest network on images like these."""
    return f"{FLOOR}-{'x'.join(map(str, split.shape))}"


def floor_images(images: Mapping[str, Split]) -> dict[str, Split]:
    """Images of the smallest networks: those of the first network with each shape."""
    return {floor_model(split): split for split in reversed(images.values())}


def floor_network(channels: int, *, num_classes: int) -> nn.Module:
    """One pooling over whole images and one linear layer: the least that classifies."""
    linear = nn.Linear(channels, num_classes)
    with torch.no_grad():
        linear.weight.copy_(torch.linspace(-1, 1, linear.weight.numel()).view_as(linear.weight))
        linear.bias.zero_()
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear).eval()


def prepare_floors(
    runtimes: Iterable[str],
    num_classes: int,
    *,
    validation: Mapping[str, Split],
    **options: Any,
) -> list[Candidate]:
    """Prepare the smallest fp32 network of every runtime, for each shape of images.

    ``validation`` and ``options`` are those of :func:`edgeopt.experiments.prepare_candidates` for
    the networks whose floor is asked for.
    """
    shown = floor_images(validation)
    specs = [
        CandidateSpec(0.0, "fp32", runtime, "pretrained", model)
        for model in shown
        for runtime in runtimes
    ]
    models = {
        spec.network: floor_network(shown[spec.model].shape[0], num_classes=num_classes)
        for spec in specs
    }
    options |= {"validation": shown, "calibration": dict.fromkeys(shown, ())}
    return prepare_candidates(specs, models=models, **options)


def with_call_floor(
    sweep: pd.DataFrame,
    floors: pd.DataFrame,
    *,
    samples: pd.DataFrame,
    images: Mapping[str, Split],
) -> pd.DataFrame:
    """Add what each runtime's call takes at least, and that as a share of the candidate's latency.

    ``call_floor_ms`` is the median of the runtime's smallest network in the same rounds, on images
    of the same shape; ``call_share`` is at most 1. NaN where it could not be measured.
    """
    medians = samples.groupby("candidate")["latency_ms"].median()
    known = {(f.runtime, f.model): medians.get(f.candidate) for f in floors.itertuples()}
    models = {model: floor_model(split) for model, split in images.items()}
    pairs = zip(sweep["runtime"], sweep["model"].map(models), strict=True)
    floor = pd.Series([known.get(pair) for pair in pairs], sweep.index, dtype=float)
    share = (floor / sweep["latency_p50_ms"]).clip(upper=1)
    return sweep.assign(call_floor_ms=floor, call_share=share)

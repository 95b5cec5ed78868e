"""Why an int8 model lost accuracy: what each layer writes, the worst first."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from edgeopt.data import Split
from edgeopt.model import FIXED, ChannelGroups, channel_groups, fold_batch_norm
from edgeopt.quantization import barrier_groups, rounded_activations

JUDGED = 8  # tensors of which the accuracy alone is measured
INSERTED_SCALE = "an inserted scale"
REACHES = ("rescaling", INSERTED_SCALE, "nothing")  # what can shrink a channel
RANGE = ("worst_channel", "minimum", "maximum", "outlier_ratio", "sqnr_db")
COLUMNS = ("layer", *RANGE, "tied_to", "reach")


def diagnose(model: nn.Module, images: Split, *, judged: int = JUDGED) -> pd.DataFrame:
    """Say which tensors of a network 8 bits with one range do not hold; fp32 is enough for it.

    It is of the network alone, and so of every runtime's static int8. One row per tensor that a
    convolution, a linear layer or an activation writes, the noisiest first:

    - ``layer``, ``worst_channel``, ``minimum``, ``maximum``: its widest channel, and its range;
    - ``outlier_ratio``: the largest magnitude of that channel over the median channel's;
    - ``sqnr_db``: signal over rounding noise of the median channel, because in a sum over channels
      one huge channel hides that all the others are lost;
    - ``accuracy_alone``: accuracy with this tensor alone rounded, of the ``judged`` worst ones;
    - ``tied_to``: other layers that write the same channel group, and have to be rescaled with it;
    - ``reach``: what can shrink the channel, one of ``REACHES``; unknown ("") where the network
      cannot be traced.

    Parameters
    ----------
    images : Split
        Hundreds are enough; what a layer writes for all is held in memory, a layer at a time.

    Raises
    ------
    ValueError
        Without images, or where a value is not finite.
    """
    if not len(images):
        raise ValueError("no images to diagnose; allowed: 1 or more")
    batch, labels = images.take(len(images)), images.labels
    try:
        network = fold_batch_norm(model, example=batch)
        groups = channel_groups(network, example=batch[:1])
    except ValueError:
        network, groups = copy.deepcopy(model).eval(), None
    rows = _rows(network, batch, groups)
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values("sqnr_db", ignore_index=True)
    worst = table["layer"].head(judged)
    alone = {name: _accuracy_alone(network, name, batch, labels) for name in worst}
    return table.assign(accuracy_alone=table["layer"].map(alone))


def _rows(
    model: nn.Module, batch: Tensor, groups: ChannelGroups | None
) -> list[dict[str, str | float]]:
    """Judge what each layer and activation writes [N, C, ...], before anything writes over it."""
    found: dict[str, dict[str, str | float]] = {}

    def judge(name: str, written: Any) -> None:
        if isinstance(written, Tensor) and written.dim() in (2, 4) and written.is_floating_point():
            found[name] = {"layer": name, **_range_row(written), **_tie_row(groups, name, written)}

    leaves = [(name, m) for name, m in model.named_modules() if not [*m.children()] and name]
    with _hooked(leaves, judge), torch.no_grad():
        model(batch)
    return [*found.values()]


@contextmanager
def _hooked(
    modules: Sequence[tuple[str, nn.Module]], call: Callable[[str, Tensor], Tensor | None]
) -> Iterator[None]:
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: call(name, output))
        for name, module in modules
        if not isinstance(module, (nn.Identity, nn.Dropout, nn.Flatten))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _range_row(written: Tensor) -> dict[str, float]:
    if not written.isfinite().all():
        raise ValueError("a tensor of the network holds values that are not finite")
    channels = written.transpose(0, 1).flatten(1)  # [C, N * rest]
    wide = channels.abs().amax(1)
    live = wide[wide > 0]
    signal = channels.square().mean(1)
    noise = (rounded_activations(channels) - channels).square().mean(1)
    ratio = 10 * torch.log10(signal[wide > 0] / noise[wide > 0])
    return {
        "worst_channel": int(wide.argmax()),
        "minimum": float(channels.min()),
        "maximum": float(channels.max()),
        "outlier_ratio": float(wide.max() / live.median()) if len(live) else 1.0,
        "sqnr_db": float(ratio.median()) if len(live) else np.inf,
    }


def _accuracy_alone(model: nn.Module, name: str, batch: Tensor, labels: Tensor) -> float:
    layer = [(name, model.get_submodule(name))]
    with _hooked(layer, lambda _, output: rounded_activations(output)), torch.no_grad():
        return float((model(batch).argmax(1) == labels).float().mean())


def _tie_row(groups: ChannelGroups | None, name: str, written: Tensor) -> dict[str, str]:
    """Which other layers write the widest channel's group, and what can shrink it."""
    numbers = groups.of_module(name).flatten() if groups else torch.empty(0)
    if numbers.numel() != written.shape[1]:
        return {"tied_to": "", "reach": ""}
    group = numbers[written.transpose(0, 1).flatten(1).abs().amax(1).argmax()]
    tied = [n for n, own in groups.layers.items() if n != name and (own.outputs == group).any()]
    rescaled, inserted, nothing = REACHES
    reach = inserted if barrier_groups(groups)[group] else rescaled
    return {"tied_to": ", ".join(tied), "reach": nothing if group == FIXED else reach}

"""How each network of the study comes to be, and by which names it is known."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from edgeopt.schema import (
    CRITERIA,
    PRUNED_RECIPES,
    RECIPES,
    UNPRUNED_RECIPES,
    file_stem,
    require_known,
)

SHOWN_WIDTHS = 4  # of a network with more groups of layers, widths are named by a digest


@dataclass(frozen=True)
class Recipe:
    """How one network of the study comes to be.

    ``widths`` holds, for each group of layers, its name and how many channels it keeps, where that
    was chosen group by group; ``pruning_level`` is then the share of all channels that goes.
    """

    model: str
    pruning_level: float
    kind: str
    seed: int = 0
    criterion: str = "l1"
    widths: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        require_known(self.kind, allowed=RECIPES, what="recipe")
        require_known(self.criterion, allowed=CRITERIA, what="criterion")
        if (self.kind in UNPRUNED_RECIPES) != (self.pruning_level == 0):
            raise ValueError(
                f"recipe {self.kind!r} at pruning level {self.pruning_level}; "
                "allowed: pretrained and baseline at level 0, the others above it"
            )

    @property
    def parent(self) -> "Recipe | None":
        """The network that this one is made from; None where it starts from first weights."""
        parents = {"baseline": "pretrained", "one-shot": "baseline"}
        parents |= dict.fromkeys(("fine-tuned", "one-epoch"), "pretrained")
        if self.kind not in parents:
            return None
        return Recipe(self.model, 0.0, parents[self.kind], self.seed)

    @property
    def pacemaker(self) -> "Recipe | None":
        """Fine-tuned network that decides how long this one is trained: of ``scratch``, its own."""
        return replace(self, kind="fine-tuned") if self.kind == "scratch" else None

    @property
    def network(self) -> tuple[str, int, float | str]:
        """Model, seed, and widths or pruning level, which candidates know their network by."""
        return self.model, self.seed, widths_label(dict(self.widths)) or self.pruning_level

    @property
    def name(self) -> str:
        """What the network is, in a form that file names can hold."""
        criterion = "" if self.criterion == "l1" else f"-{self.criterion}"
        size = level_label(self.pruning_level, widths_label(dict(self.widths)))
        level = f"{size}{criterion}"
        return f"{file_stem(self.model)}-{self.kind}-{level}-seed{self.seed}"

    @property
    def file_name(self) -> str:
        """Where a run keeps this network's weights."""
        return f"weights/{self.name}.pt"


def widths_label(widths: Mapping[str, int]) -> str:
    """Write widths as ``8x32``, or as a digest where there are many; empty without any."""
    if len(widths) > SHOWN_WIDTHS:
        return hashlib.sha256(repr(sorted(widths.items())).encode()).hexdigest()[:8]
    return "x".join(map(str, widths.values()))


def level_label(pruning_level: float, widths: str) -> str:
    """Name the size of a network in file names: ``p50`` by its level, ``w8x32`` by its widths."""
    return f"w{widths}" if widths else f"p{100 * pruning_level:g}"


def searched_recipe(
    model: str, widths: Mapping[str, int], *, whole: Mapping[str, int], kind: str, seed: int = 0
) -> Recipe:
    """Make the recipe of a network with these widths, of ``whole`` ones by group.

    With all channels it is the baseline, whose epochs are as many as those of ``fine-tuned``.
    """
    gone = 1 - sum(widths[name] for name in whole) / sum(whole.values())
    if not gone:
        return Recipe(model, 0.0, "baseline", seed)
    return Recipe(model, gone, kind, seed, widths=tuple((name, widths[name]) for name in whole))


def pruned_recipes(
    models: Iterable[str],
    pruning_levels: Iterable[float],
    seeds: Iterable[int],
    *,
    kinds: Sequence[str] = PRUNED_RECIPES,
    criteria: Sequence[str] = ("l1",),
) -> list[Recipe]:
    """Every kind by every criterion at every level above zero, for every network and seed."""
    levels = [level for level in pruning_levels if level > 0]
    axes = itertools.product(models, seeds, levels, criteria, kinds)
    return [Recipe(model, level, kind, seed, by) for model, seed, level, by, kind in axes]

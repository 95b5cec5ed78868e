"""How each network of the study comes to be, and by which names it is known."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from edgeopt.schema import CRITERIA, PRUNED_RECIPES, RECIPES, file_stem, require_known


@dataclass(frozen=True)
class Recipe:
    """How one network of the study comes to be."""

    model: str
    pruning_level: float
    kind: str
    seed: int = 0
    criterion: str = "l1"

    def __post_init__(self) -> None:
        require_known(self.kind, allowed=RECIPES, what="recipe")
        require_known(self.criterion, allowed=CRITERIA, what="criterion")
        if (self.kind in PRUNED_RECIPES) != (self.pruning_level > 0):
            raise ValueError(
                f"recipe {self.kind!r} at pruning level {self.pruning_level}; "
                "allowed: pretrained and baseline at level 0, the others above it"
            )

    @property
    def parent(self) -> "Recipe | None":
        """The network that this one is made from; None where it starts from first weights."""
        parents = {"baseline": "pretrained", "one-shot": "baseline", "fine-tuned": "pretrained"}
        if self.kind not in parents:
            return None
        return replace(self, pruning_level=0.0, kind=parents[self.kind], criterion="l1")

    @property
    def network(self) -> tuple[str, int, float]:
        """Model, seed and pruning level, which candidates know their network by."""
        return self.model, self.seed, self.pruning_level

    @property
    def name(self) -> str:
        """What the network is, in a form that file names can hold."""
        criterion = "" if self.criterion == "l1" else f"-{self.criterion}"
        level = f"p{100 * self.pruning_level:g}{criterion}"
        return f"{file_stem(self.model)}-{self.kind}-{level}-seed{self.seed}"

    @property
    def file_name(self) -> str:
        """Where a run keeps this network's weights."""
        return f"weights/{self.name}.pt"


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
